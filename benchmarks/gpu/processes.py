"""Runs processes for a time, each with all that it starts: nothing of it holds the device after."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
LATE = 124  # the exit code of a process that did not end in time


def watch(command: Sequence[str], seconds: float) -> int:
    """Run a process whose output is this one's; its exit code, or `LATE`."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return LATE
    finally:
        _end(process)


def capture(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a process.

    Args:
        environment: is added to this process's, where that does not say otherwise.

    Returns:
        Its exit code, or `LATE`, and all that it wrote.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(environment or {}) | dict(os.environ),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        _end(process)
        output, _ = process.communicate()
        return LATE, f"{output}\nit did not end in {seconds:.0f} s"
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
