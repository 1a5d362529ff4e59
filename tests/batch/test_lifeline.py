"""Workers end with their driver."""

from __future__ import annotations

import subprocess
import sys

from paged_stream.batch.lifeline import Lifeline, end_with

_DRIVER = """
from paged_stream.batch.lifeline import Lifeline
lifeline = Lifeline("127.0.0.1")
print(lifeline.address[1], flush=True)
input()
"""
_WORKER = """
import sys, threading
from paged_stream.batch.lifeline import end_with
end_with(("127.0.0.1", int(sys.argv[1])))
print("lives", flush=True)
threading.Event().wait()
"""


def start(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    return process, process.stdout.readline().strip()


def test_workers_end_when_their_driver_is_killed():
    driver, port = start(_DRIVER)
    workers = [start(_WORKER, port) for _ in range(3)]
    assert [word for _, word in workers] == ["lives"] * 3
    assert [worker.poll() for worker, _ in workers] == [None] * 3
    driver.kill()
    for worker, _ in workers:
        assert worker.wait() == 1


def test_a_driver_that_cannot_be_reached_is_left_to_ray(caplog):
    lifeline = Lifeline("127.0.0.1")
    lifeline.close()
    end_with(lifeline.address)
    assert "cannot be reached" in caplog.text
