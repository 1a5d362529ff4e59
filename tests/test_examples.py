"""The examples run, on a tiny model."""

from __future__ import annotations

import asyncio
import importlib.util
import io
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_chat_service(folder):
    async def converse() -> list[str]:
        port = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(
            load("chat_service").serve(str(folder), 0, ready=port.set_result)
        )
        reader, writer = await asyncio.open_connection("localhost", await port)
        answers = []
        for question in ("hello", "and then"):
            writer.write(f"{question}\n".encode())
            answers.append((await reader.readline()).decode())
        writer.write(b"\n")
        assert await reader.read() == b""
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server
        return answers

    answers = asyncio.run(converse())
    assert len(answers) == 2 and all(answer.endswith("\n") for answer in answers)


def test_log_summaries(folder, monkeypatch, capsys):
    lines = "".join(f"line {i} of a log\n" for i in range(50))
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    load("summarise_log").main(["--model", str(folder), "--every", "20", "--max-tokens", "5"])
    output = capsys.readouterr().out.splitlines()
    assert [line.split("]")[0] for line in output] == ["[20 lines", "[40 lines"]


def test_best_of_n(folder, capsys):
    arguments = ["once upon", "--model", str(folder), "--sentences", "2", "--max-tokens", "6"]
    load("best_of_n").main(arguments)
    assert capsys.readouterr().out.startswith("once upon")
