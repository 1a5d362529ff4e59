"""The page of a service, in a browser."""

from __future__ import annotations

import json
import re
import shutil

import pytest

pytest.importorskip("playwright")

import requests
from playwright.sync_api import expect, sync_playwright

from tests.serve.services import serve_engine

expect.set_options(timeout=120_000)  # milliseconds, on a busy machine
pytestmark = pytest.mark.slow
WINDOW = 40
NUM_TOKENS = 90


@pytest.fixture(scope="module")
def base(folder, tmp_path_factory):
    more = {"window_size": WINDOW, "state_dir": tmp_path_factory.mktemp("state")}
    with serve_engine(folder, **more) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def errors():
    return []


@pytest.fixture
def page(base, browser, errors):
    """A page that was just opened, of a service without streams."""
    for each in requests.get(f"{base}/v1/streams").json()["data"]:
        requests.delete(f"{base}/v1/streams/{each['id']}")
    page = browser.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.goto(base)
    expect(page.locator("#nothing")).to_be_visible()
    yield page
    page.close()
    assert not errors


def opened(page):
    """Open a stream by the keyboard; returns its id."""
    expect(page.locator("#model")).not_to_be_empty()
    page.keyboard.press("n")
    page.locator("#opening button.main").click()
    expect(page.locator(".pane")).to_have_count(1)
    return page.url.partition("#")[2]


def write(page, text, number=0, tokens=NUM_TOKENS):
    pane = page.locator(".pane").nth(number)
    pane.locator("select").select_option("generate")
    pane.locator("input[type=number]").fill(str(tokens))
    pane.locator("textarea").fill(text)
    pane.locator("textarea").press("Enter")


def position(page, number=0):
    return page.locator(".pane").nth(number).locator(".facts dd").first


def rests(page, at, number=0):
    expect(position(page, number)).to_have_text(str(at))
    expect(page.locator(".pane").nth(number).locator(".where")).to_have_text("rests")


def seen(page, number=0):
    """The text that the page shows as visible."""
    kinds = ".text .sink, .text .window, .text .pending"
    return "".join(page.locator(".pane").nth(number).locator(kinds).all_text_contents())


def visible(base, stream_id):
    return requests.get(f"{base}/v1/streams/{stream_id}/visible").json()


def text_of(visible):
    return "".join(run["text"] for run in visible["runs"])


def stats(base, stream_id):
    return requests.get(f"{base}/v1/streams/{stream_id}").json()


def filled(base, page):
    """A stream far beyond its window; returns its id."""
    stream_id = opened(page)
    write(page, "a beginning")
    with requests.get(f"{base}/v1/streams/{stream_id}/events?after=0", stream=True) as events:
        lines = (line for line in events.iter_lines() if line.startswith(b"data: {"))
        assert any(json.loads(line[6:])["type"] == "ended" for line in lines)
    rests(page, stats(base, stream_id)["num_tokens"])
    return stream_id


def test_a_stream_goes_past_its_window(base, page):
    stream_id = filled(base, page)
    told = stats(base, stream_id)
    assert told["num_evicted_tokens"] > 0
    expect(page.locator(".text .gone").first).to_be_attached()
    assert seen(page) == text_of(visible(base, stream_id))
    label = page.locator(".pane .band").get_attribute("aria-label")
    numbers = list(map(int, re.findall(r"\d+", label)))
    sinks, *_, window = visible(base, stream_id)["runs"]
    gone = window["start"] - len(sinks["token_ids"])
    assert numbers[:3] == [told["num_tokens"], told["num_sink_tokens"], gone]
    # What the page remembers is in order. It may have looked too late for some that are gone.
    spans = page.locator(".text [data-start]")
    ends = spans.evaluate_all("all => all.map(e => [+e.dataset.start, +e.dataset.end])")
    covered = [position for start, end in ends for position in range(start, end)]
    lost = sorted(set(range(told["num_tokens"])) - set(covered))
    assert covered == sorted(set(covered))
    assert not lost or len(sinks["token_ids"]) <= lost[0] <= lost[-1] < window["start"]
    if not lost:
        expect(page.locator(".text .gap")).to_have_count(0)


def test_a_fork_goes_on_beside_the_stream(base, page):
    stream_id = filled(base, page)
    at = stats(base, stream_id)["num_tokens"]
    page.locator(".text").focus()
    page.keyboard.press("f")
    expect(page.locator(".pane")).to_have_count(2)
    rests(page, at, number=1)
    assert seen(page, 1) == seen(page, 0)
    write(page, "", number=1, tokens=7)
    rests(page, at + 7, number=1)
    rests(page, at, number=0)
    other = page.url.partition("+")[2]
    assert seen(page, 1) == text_of(visible(base, other))
    assert seen(page, 0) == text_of(visible(base, stream_id))


def select(page, first, last):
    """Select pieces of the window, counted from its end."""
    page.evaluate(
        """([first, last]) => {
            const spans = [...document.querySelectorAll(".text .window")];
            const range = document.createRange();
            range.setStartBefore(spans.at(-first));
            range.setEndAfter(spans.at(-last));
            getSelection().removeAllRanges();
            getSelection().addRange(range);
        }""",
        [first, last],
    )


def test_text_is_cut_out_and_gone_back_from(base, page):
    stream_id = filled(base, page)
    before = visible(base, stream_id)["runs"][-1]
    expect(page.locator("[data-do=cut]")).to_be_disabled()
    select(page, 12, 8)
    expect(page.locator("[data-do=cut]")).to_be_enabled()
    page.locator("[data-do=cut]").click()
    expect(page.get_by_text("something was cut out here")).to_be_visible()
    ids = [each for run in visible(base, stream_id)["runs"] for each in run["token_ids"]]
    # Before the last token, which is not computed yet, the window's spans end.
    end = len(before["token_ids"]) - 1
    kept = before["token_ids"][: end - 12] + before["token_ids"][end - 12 + 5 :]
    assert ids[-len(kept) :] == kept
    at = stats(base, stream_id)["num_tokens"]
    select(page, 3, 3)
    page.locator("[data-do=rewind]").click()
    expect(position(page)).to_have_text(str(at - 4))
    assert seen(page) == text_of(visible(base, stream_id))


def test_a_page_that_is_loaded_again_goes_on(base, page):
    stream_id = filled(base, page)
    at = stats(base, stream_id)["num_tokens"]
    page.reload()
    expect(page.locator(".pane")).to_have_count(1)
    rests(page, at)
    assert seen(page) == text_of(visible(base, stream_id))
    expect(page.get_by_text("tokens have left the window")).to_be_visible()
    write(page, "", tokens=5)
    rests(page, at + 5)


def test_a_stream_is_parked_saved_and_restored(base, page):
    stream_id = filled(base, page)
    text = text_of(visible(base, stream_id))
    page.locator("[data-do=park]").click()
    expect(page.locator(".where")).to_have_text("parked")
    page.locator("[data-do=save]").click()
    page.locator("#naming input").fill("tale")
    page.locator("#naming button.main").click()
    page.get_by_text("Restore tale").click()
    expect(page.locator("#streams li")).to_have_count(2)
    expect(page.locator(".text .window").first).to_be_attached()
    restored = page.url.partition("#")[2]
    assert restored != stream_id
    assert seen(page) == text_of(visible(base, restored)) == text
    page.locator("[data-do=close]").click()
    expect(page.locator("#streams li")).to_have_count(1)


def test_what_the_service_refuses_is_said(base, page, errors):
    opened(page)
    write(page, "", tokens=5)  # of an empty stream
    expect(page.locator("#message")).to_contain_text("empty")
    page.keyboard.press("n")  # in a text field this is a letter
    assert page.locator("textarea").first.input_value() == "n"
    assert len(errors) == 1 and "400" in errors.pop()


def test_the_keyboard_reaches_everything(base, page):
    first = opened(page)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("n")
    page.locator("#opening button.main").press("Enter")
    expect(page.locator("#streams li")).to_have_count(2)
    page.keyboard.press("Escape")
    assert page.url.partition("#")[2] != first
    page.keyboard.press("j")
    assert page.url.partition("#")[2] == first
    page.keyboard.press("Escape")
    page.keyboard.press("x")
    expect(page.locator(".pane")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_is_not_wider_than_it_is(base, page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 700})
    filled(base, page)
    assert page.evaluate("document.scrollingElement.scrollWidth") == 360
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    lightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (lightness[0] < lightness[1]) == (scheme == "light")


def test_the_page_asks_for_a_key(folder, browser):
    with serve_engine(folder, api_key="secret") as base:
        page = browser.new_page()
        page.goto(base)
        expect(page.locator("#unlocking")).to_be_visible()
        page.locator("#unlocking input").fill("secret")
        page.locator("#unlocking button").click()
        expect(page.locator("#model")).to_have_text(str(folder))
        page.close()


def test_every_file_of_the_page_is_sent_as_what_it_is(base):
    answer = requests.get(base)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for name in re.findall(r'(?:href|src)="(page/[^"]+)"', answer.text):
        assert requests.get(f"{base}/{name}").status_code == 200
    assert requests.get(f"{base}/page/../app.py").status_code == 404
    assert json.dumps(requests.get(f"{base}/openapi.json").json()).find("/page/") == -1
