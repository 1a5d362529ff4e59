"""What a user sees: output, exit codes, one-line errors."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys

import pytest

from paged_stream.cli import main

ENGINE = ["--window-size", "24", "--dtype", "float32", "--kv-cache-memory-bytes", "4000000"]
SAMPLING = ["--max-tokens", "60", "--seed", "1", "--ignore-eos"]


def test_generate_runs_past_the_window(folder, capsys):
    assert main(["generate", "hello", "--model", str(folder), *ENGINE, *SAMPLING]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("hello") and len(out) > 50
    assert re.search(r"60 tokens, .* tok/s \| KV .* MiB in \d+ blocks .* 37 evicted", err)


def test_generate_reads_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert main(["generate", "--model", str(folder), *ENGINE, *SAMPLING]) == 0
    assert capsys.readouterr().out.startswith("from a pipe")


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
    # One sink block and a ring of three, 8 KiB each, in 4,000,000 bytes.
    assert "streams that fit  122 in 3.815 MiB" in out
    assert main(["info", str(folder), *ENGINE, "--kv-cache-dtype", "int8"]) == 0
    out = capsys.readouterr().out
    assert "KV per token      160 B in int8" in out
    assert "streams that fit  390 in 3.815 MiB" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--model", "nowhere"], "model='nowhere' is no folder"),
        (["generate", "", *ENGINE], "prompt must not be empty"),
        (["generate", "x", "--temperature", "nan"], "temperature must be in"),
        (["info", "--num-sink-tokens", "-1"], "num_sink_tokens must be >= 0"),
        (["generate", "x", "--kv-cache-dtype", "int4"], "kv_cache_dtype must be one of auto, int8"),
    ],
)
def test_errors_are_one_line_and_exit_2(folder, capsys, arguments, message):
    if "--model" not in arguments and arguments[0] == "generate":
        arguments = [*arguments, "--model", str(folder)]
    assert main(arguments) == 2
    err = capsys.readouterr().err
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
    command += [*ENGINE, "--max-tokens", "2000", "--ignore-eos"]
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
    assert f"example:\n  paged-stream {command}" in capsys.readouterr().out


def test_chat_without_a_tokenizer(bare_folder, capsys):
    assert main(["chat", "--model", str(bare_folder), *ENGINE]) == 2
    assert "need a tokenizer" in capsys.readouterr().err
