"""Draws the pictures of a service's page in docs/services.md.

    python -m benchmarks.page_pictures

Starts a service with the small model, talks in the page until the conversation is longer than its
window, forks it, and takes the pictures in Debian's Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
MODEL = "smollm2-135m-instruct"
ADDRESS = "http://127.0.0.1:8123"
COMMAND = [sys.executable, "-m", "paged_stream", "serve", "--model", MODEL, "--port", "8123"]
PIN = "You are a friendly assistant who tells stories."
QUESTIONS = (
    "Tell me a story about the sea.",
    "Who was the captain of the ship? Describe him at length.",
    "And what did the cook do?",
)
_MILLISECONDS = 300_000


def converse(page: Page) -> None:
    """Open a stream and let it go past its window."""
    expect(page.locator("#model")).not_to_be_empty()
    page.keyboard.press("n")
    page.locator("[name=window_size]").fill("96")
    page.locator("[name=pin]").fill(PIN)
    page.locator("#opening button.main").click()
    for question in QUESTIONS:
        page.locator(".pane input").fill("120")
        page.locator(".pane textarea").fill(question)
        page.locator(".pane textarea").press("Enter")
        expect(page.locator(".where")).to_have_text("writes")
        expect(page.locator(".where")).to_have_text("rests")


def draw(page: Page) -> None:
    converse(page)
    page.locator("[data-do=fork]").click()
    expect(page.locator(".pane")).to_have_count(2)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=PICTURES / f"page_{scheme}.png")
    page.set_viewport_size({"width": 390, "height": 780})
    page.screenshot(path=PICTURES / "page_narrow.png")


def main() -> None:
    program = shutil.which("chromium")
    if program is None:
        sys.exit("there is no chromium; on Debian: apt-get install chromium")
    PICTURES.mkdir(exist_ok=True)
    expect.set_options(timeout=_MILLISECONDS)
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        service.stdout.readline()  # that it answers now
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 760})
            page.goto(ADDRESS)
            draw(page)
            browser.close()
        service.terminate()


if __name__ == "__main__":
    main()
