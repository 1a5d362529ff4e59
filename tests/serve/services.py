"""``paged-stream serve`` in a process or a thread, and a client of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import requests

from paged_stream.cli import main
from paged_stream.commands import serve as serve_command

SETTINGS = {
    "window_size": 24,
    "block_size": 8,
    "dtype": "float32",
    "kv_cache_memory_bytes": 4 << 20,
}
WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
from paged_stream.cli import main
sys.exit(main(sys.argv[1:]))
"""
SAMPLING: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True}


class Client:
    def __init__(self, base: str) -> None:
        self.base = base

    def get(self, path):
        return requests.get(self.base + path)

    def post(self, path, json=None, **options):
        return requests.post(self.base + path, json=json, **options)

    def delete(self, path):
        return requests.delete(self.base + path)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serve_engine(folder, end=signal.SIGINT, **more):
    """The command in a process without Ray, until a signal such as that of Ctrl-C."""
    options = {"port": free_port(), "model": folder} | SETTINGS | more
    command = [sys.executable, "-c", WITHOUT_RAY, *arguments(options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == (
            f"serving on http://127.0.0.1:{options['port']}/v1, Ctrl-C ends it\n"
        )
        try:
            yield f"http://127.0.0.1:{options['port']}"
        except BaseException:  # of a test that fails: nothing would end the process
            process.kill()
            raise
        process.send_signal(end)
        assert process.wait() == (-end if end == signal.SIGKILL else 130)
        told = process.stderr.read().rstrip()
        assert told == f"loading {folder}", told


@contextmanager
def serve_pool(folder, **more):
    """The command in a thread, where an event stands for Ctrl-C."""
    answers, interrupt = threading.Event(), threading.Event()

    def wait():
        answers.set()
        interrupt.wait()
        raise KeyboardInterrupt

    with (
        pytest.MonkeyPatch.context() as patch,
        ThreadPoolExecutor() as threads,
        TemporaryDirectory() as save_dir,
    ):
        options = {"port": free_port(), "num_replicas": 2, "model": folder, "save_dir": save_dir}
        patch.setattr(serve_command, "_wait", wait)
        command = threads.submit(main, arguments(options | SETTINGS | more))
        command.add_done_callback(lambda _: answers.set())
        answers.wait()
        assert not command.done(), f"exit status {command.result()}"
        assert os.listdir(save_dir)
        yield f"http://127.0.0.1:{options['port']}"
        interrupt.set()
        assert command.result() == 130
        assert not os.listdir(save_dir)


def arguments(options):
    """The command line that gives these options."""
    pairs = (("--" + name.replace("_", "-"), str(value)) for name, value in options.items())
    return ["serve", *(word for pair in pairs for word in pair)]


def events(client, path, body):
    """What comes, event by event, before [DONE]."""
    with client.post(path, json=body | {"stream": True}, stream=True) as response:
        assert response.status_code == 200
        found = [line.decode() for line in response.iter_lines() if line.startswith(b"data: ")]
    lines = [line.removeprefix("data: ") for line in found]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]
