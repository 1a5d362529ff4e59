"""What a user sees: output, exit codes, one-line errors."""

from __future__ import annotations

import io
import itertools
import json
import logging
import re
import shutil
import subprocess
import sys

import pytest

from paged_stream import SamplingParams, __version__
from paged_stream.cli import main
from paged_stream.commands.output import show
from paged_stream.engine.stream import Stream
from paged_stream.models.formats import gguf

ENGINE = ["--window-size", "24", "--dtype", "float32", "--kv-cache-memory-bytes", "4000000"]
SAMPLING = ["--max-tokens", "60", "--seed", "1", "--ignore-eos"]


def test_generate_runs_past_the_window(folder, capsys):
    assert main(["generate", "hello", "--model", str(folder), *ENGINE, *SAMPLING]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("hello") and len(out) > 50
    assert re.search(r"60 tokens, .* tok/s \| KV .* MiB in \d+ blocks .* 37 evicted", err)


def test_generate_reads_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe")))
    assert main(["generate", "--model", str(folder), *ENGINE, *SAMPLING]) == 0
    assert capsys.readouterr().out.startswith("from a pipe")


def test_generate_reads_a_file(folder, tmp_path, capsys):
    path = tmp_path / "prompt.txt"
    path.write_text("from a file, " * 20)  # more than a step computes
    arguments = ["--model", str(folder), *ENGINE, *SAMPLING]
    assert main(["generate", "--file", str(path), *arguments]) == 0
    from_file = capsys.readouterr().out
    assert main(["generate", path.read_text(), *arguments]) == 0
    assert from_file == capsys.readouterr().out and from_file.startswith("from a file, ")


def test_generate_in_json(folder, capsys):
    arguments = ["hello", "--model", str(folder), *ENGINE, *SAMPLING]
    assert main(["generate", *arguments]) == 0
    text = capsys.readouterr().out
    assert main(["generate", "--json", *arguments]) == 0
    out = capsys.readouterr().out
    answer = json.loads(out)
    assert out.count("\n") == 1 and text == f"hello{answer['text']}\n"
    assert answer["model"] == str(folder) and answer["finish_reason"] == "length"
    assert len(answer["token_ids"]) == 60
    usage = {"prompt_tokens": 5, "completion_tokens": 60, "total_tokens": 65}
    assert answer["usage"] == usage


@pytest.mark.parametrize("isatty", [False, True])
def test_tokens_are_written_as_they_come(make_engine, capsys, monkeypatch, isatty):
    monkeypatch.setattr("sys.stdout.isatty", lambda: isatty)
    written = expected = ""

    def watched(deltas):
        nonlocal written, expected
        for delta in deltas:
            expected += delta.delta_text
            yield delta
            written += capsys.readouterr().out
            assert written == expected

    with make_engine().open_stream() as stream:
        stream.append("hello")
        assert show(stream, watched(stream.generate(SamplingParams(max_tokens=9, seed=1))))
    assert expected and capsys.readouterr().out == "\n"


@pytest.mark.parametrize("is_json", [False, True])
def test_an_interrupted_answer(folder, capsys, monkeypatch, is_json):
    generate = Stream.generate

    def interrupted(stream, params):
        yield from itertools.islice(generate(stream, params), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(Stream, "generate", interrupted)
    arguments = ["generate", "hello", "--model", str(folder), *ENGINE, *SAMPLING]
    assert main(arguments + ["--json"] * is_json) == 130
    out, err = capsys.readouterr()
    assert "[3 tokens" in err and "Traceback" not in err
    if is_json:
        answer = json.loads(out)
        assert answer["finish_reason"] == "abort" and len(answer["token_ids"]) == 3
    else:
        assert out.startswith("hello") and len(out) == len("hello") + 3 + 1


def test_a_long_prompt_on_a_terminal_is_shown_by_its_end(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    prompt = "a" * 3000 + "b" * 2000
    arguments = ["--model", str(folder), *ENGINE, "--max-tokens", "1", "--ignore-eos"]
    assert main(["generate", prompt, *arguments]) == 0
    assert capsys.readouterr().out.startswith("[...]" + "b" * 2000)


def test_version_and_help(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"paged-stream {__version__}\n"
    assert main([]) == 0
    assert "generate" in capsys.readouterr().out


def test_the_package_is_the_command():
    command = [sys.executable, "-m", "paged_stream", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.startswith("paged-stream")


def test_the_first_use_says_what_it_does(gguf_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gguf, "convert", lambda path, folder, _: (folder / "config.json").touch())
    arguments = ["info", str(gguf_file)]
    assert main(arguments) == 2  # nothing was written that could be read
    assert f"converting what {gguf_file} says once into {tmp_path}" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "converting" not in capsys.readouterr().err


def test_loading_is_said(folder, capsys):
    assert main(["generate", "x", "--model", str(folder), *ENGINE, "--max-tokens", "1"]) == 0
    assert capsys.readouterr().err.startswith(f"loading {folder}\n")
    assert not logging.getLogger("paged_stream").handlers


@pytest.fixture
def gguf_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def test_chat_keeps_its_stream(folder, capsys, monkeypatch):
    lines = iter(["hi", "", "more"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or _end(lines))
    assert main(["chat", "--model", str(folder), *ENGINE, *SAMPLING]) == 0
    streams = re.findall(r"stream (\d+):", capsys.readouterr().err)
    assert len(streams) == 2 and int(streams[1]) > int(streams[0]) + 60


def _end(lines):
    line = next(lines, None)
    if line is None:
        raise EOFError
    return line


def test_info_plans_capacity(folder, capsys):
    assert main(["info", str(folder), *ENGINE]) == 0
    out = capsys.readouterr().out
    assert "KV per token      512 B in float32" in out
    assert "4 sink tokens + a window of 24" in out
    assert "3.812 MiB reserved in 488 blocks of 16 tokens, resident as streams fill them" in out
    # One sink block and a ring of three, 8 KiB each, in 4,000,000 bytes.
    assert "streams that fit  122 in 3.815 MiB" in out
    assert main(["info", str(folder), *ENGINE, "--kv-cache-dtype", "int8"]) == 0
    out = capsys.readouterr().out
    assert "KV per token      160 B in int8" in out
    assert "streams that fit  390 in 3.815 MiB" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--file", "y"], "prompt and file are both given"),
        (["generate", "--file", "nowhere.txt"], "nowhere.txt"),
        (["generate", "--file", "BINARY"], "is not UTF-8 text: byte 0xff at offset 2"),
        (["generate", "x", "--model", "TRUNCATED"], "model.gguf is truncated"),
        (["generate", "x", "--model", "nowhere"], "model='nowhere' is no folder"),
        (["generate", "", *ENGINE], "prompt must not be empty"),
        (["generate", "x", "--temperature", "nan"], "temperature must be in"),
        (["info", "--num-sink-tokens", "-1"], "--num-sink-tokens must be >= 0, got -1"),
        (
            ["generate", "x", "--kv-cache-dtype", "int4"],
            "--kv-cache-dtype must be one of auto,",
        ),
    ],
)
def test_errors_are_one_line_and_exit_2(folder, tmp_path, gguf_file, capsys, arguments, message):
    (tmp_path / "binary").write_bytes(b"ab\xff")
    paths = {"BINARY": tmp_path / "binary", "TRUNCATED": gguf_file}
    arguments = [str(paths.get(argument, argument)) for argument in arguments]
    if "--model" not in arguments and arguments[0] == "generate":
        arguments = [*arguments, "--model", str(folder)]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    err = re.sub("^converting .*\n", "", err)  # a truncated file is found out then
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_chat_without_a_template_ends_before_the_first_question(
    folder, tmp_path, monkeypatch, capsys
):
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("asked"))
    assert main(["chat", "--model", str(bare), *ENGINE]) == 2
    assert "no chat template" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough(folder):
    code = "import sys; from paged_stream.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "generate", "x", "--model", str(folder)]
    command += [*ENGINE, "--max-tokens", "1000000000", "--ignore-eos"]  # a pipe holds fewer
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(4)
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 1
    assert "Broken pipe" not in errors and "Traceback" not in errors


@pytest.mark.parametrize("command", ["generate", "chat", "batch", "serve", "info"])
def test_help_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as exit_info:
        main([command, "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert f"example:\n  paged-stream {command}" in out
    assert "--num-threads" in out and "--config FILE" in out and "PAGED_STREAM_" in out


def test_chat_without_a_tokenizer(bare_folder, capsys):
    assert main(["chat", "--model", str(bare_folder), *ENGINE]) == 2
    assert "need a tokenizer" in capsys.readouterr().err
