"""The examples on the pages do what they say, as they are printed, with the model that they name;
and what the pages point at is there."""

from __future__ import annotations

import doctest
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import paged_stream.batch
from paged_stream import cli
from paged_stream.engine import api
from tests.lora_adapter import Adapter

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = "paged-stream"
# Files that a page tells to make.
MADE = {"benchmarks/results/gpu", "paged_stream/models/families/starcoder2.py"}


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a page. Each is moved down to where it stands there, for tracebacks."""
    text = page.read_text()
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [
        "\n" * text[: match.start(2)].count("\n") + match[2]
        for match in found
        if match[1] == language
    ]


def lines(code: str) -> list[list[str]]:
    """Words of each line of a shell script, without comments."""
    script = code.replace("\\\n", " ")
    return [words for line in script.splitlines() if (words := shlex.split(line, comments=True))]


def pages_with(language: str) -> list:
    return [pytest.param(page, id=page.name) for page in PAGES if blocks(page, language)]


class OneProjection:
    """As much of SmolLM2 as an adapter is made for."""

    @staticmethod
    def named_modules():
        yield "model.layers.0.self_attn.q_proj", torch.nn.Linear(576, 576)


@pytest.fixture
def folder_of_a_user(tmp_path, monkeypatch) -> Iterator[Path]:
    """A home with an adapter of the pages' model, and the cache of converted models."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Adapter(OneProjection()).save(tmp_path / "my-adapter")
    return tmp_path


@pytest.fixture
def any_port(monkeypatch):
    """Metrics at a free port: at the one that a page names, this machine may have its own."""
    client = pytest.importorskip("prometheus_client")
    start = client.start_http_server
    monkeypatch.setattr(client, "start_http_server", lambda port: start(0, "127.0.0.1"))


@pytest.fixture
def ray_serve(ray):
    """Ray Serve as an example finds it, but on a port that nobody else has."""
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield
    serve.shutdown()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("page", pages_with("python"))
def test_python(page, folder_of_a_user, ray, any_port, request):
    code = blocks(page, "python")
    if "serve.run(" in "".join(code):
        request.getfixturevalue("ray_serve")
    namespace = {"__name__": "__main__"}  # one for all blocks of a page, as in a session
    for block in code:
        exec(compile(block, page, "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("pycon"))
def test_errors_are_those_that_are_printed(page, folder_of_a_user, request):
    sessions = "\n".join(blocks(page, "pycon"))
    test = doctest.DocTestParser().get_doctest(sessions, {}, page.name, str(page), 0)
    results = doctest.DocTestRunner().run(test, clear_globs=False)
    assert results.attempted and not results.failed


@pytest.mark.parametrize("page", pages_with("console"))
def test_commands_print_what_stands_below_them(page, folder_of_a_user, capfd):
    for block in blocks(page, "console"):
        command, *printed = block.strip().splitlines()
        assert shlex.split(command)[:2] == ["$", COMMAND]
        cli.main(shlex.split(command)[2:])
        assert "".join(capfd.readouterr()).splitlines()[-len(printed) :] == printed


@pytest.mark.parametrize("page", pages_with("sh"))
def test_commands_have_the_options_that_are_printed(page):
    commands = [words for code in blocks(page, "sh") for words in lines(code) if COMMAND in words]
    for words in commands:
        arguments = words[words.index(COMMAND) + 1 :]
        assert cli.make_parser().parse_args(arguments).command.name == arguments[0]


def test_the_pages_with_commands_are_known():
    """So that a block whose mark is forgotten does not go unseen."""
    unmarked = [block for page in PAGES for block in blocks(page, "")]
    assert not [block for block in unmarked if COMMAND in block]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/scaling.md"])
def test_batches(page, folder_of_a_user, ray, capfd):
    """Commands on the input that the same block has written."""
    script = [words for code in blocks(ROOT / page, "sh") for words in lines(code)]
    [content] = [words[1] for words in script if words[0] == "echo"]
    subprocess.run(["sh", "-c", f"echo {shlex.quote(content)} > questions.jsonl"], check=True)
    commands = [words for words in script if words[0] == COMMAND and "questions.jsonl" in words]
    for words in commands:
        assert cli.main(words[1:]) == 0
        assert capfd.readouterr().out
    assert Path("answers").exists() == any("--dry-run" not in words for words in commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    """Links between pages, pictures, and paths in the code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir())
    paths = re.findall(rf"`((?:{folders})/[\w./-]+)`", text)
    paths = [path for path in paths if path not in MADE and not path.startswith("build/")]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_every_public_name_is_in_the_reference():
    reference = (ROOT / "docs" / "api.md").read_text()
    shown = re.findall(r"auto(?:class|data|function|exception):: [\w.]*?(\w+)$", reference, re.M)
    public = {*paged_stream.__all__, *paged_stream.batch.__all__} - {"__version__"}
    assert not public - set(shown)


@pytest.mark.parametrize(
    ("name", "contract"),
    [
        ("LLM", api.EngineApi),
        ("LLMEngine", api.EngineApi),
        ("Stream", api.StreamApi),
        ("RayLLM", api.EngineApi),
        ("pool.stream.PoolStream", api.StreamApi),
        ("AsyncRayLLM", api.AsyncEngineApi),
        ("AsyncLLMEngine", api.AsyncEngineApi),
        ("AsyncStream", api.AsyncStreamApi),
    ],
)
def test_the_reference_shows_what_the_contract_promises(name, contract):
    reference = (ROOT / "docs" / "api.md").read_text()
    entry = reference.partition(f"autoclass:: paged_stream.{name}\n")[2].partition(".. auto")[0]
    shown = set(re.findall(r"\w+", entry))
    assert {method for method in dir(contract) if not method.startswith("_")} <= shown


def test_every_page_is_in_the_table_of_contents():
    contents = re.findall(r"^[\w-]+$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages - {"index"} == set(contents)
