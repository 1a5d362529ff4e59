"""A few small ops under compute-sanitizer, which slows them down by far.

Run as a program, this is what the tool looks at.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.sections import TINY, Section

_TOOLS = ("memcheck", "racecheck")
_SECONDS = 42  # for each
_UNABLE = ("Device not supported", "error 999", "Unable to")


def check_with_sanitizer(section: Section) -> None:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if section.device.type != "cuda" or not Path(tool).exists():
        section.record("compute-sanitizer", skipped="it is not there, or this is no CUDA device")
        return
    for name in _TOOLS:
        section.attempt(name, _look, section, tool, name)


def _look(section: Section, tool: str, name: str) -> None:
    command = [tool, "--tool", name, "--error-exitcode", "9", "--print-limit", "20"]
    command += [sys.executable, "-m", "benchmarks.gpu.sanitizer"]
    try:
        done = subprocess.run(command, timeout=_SECONDS, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        section.record(name, skipped=f"not done after {_SECONDS} s")
        return
    tail = (done.stdout + done.stderr)[-3000:]
    if done.returncode and any(words in tail for words in _UNABLE):
        section.record(name, skipped="the tool cannot run on this machine")
    elif done.returncode:
        section.record(name, ok=False, detail=tail)
    else:
        section.record(name, ok=True)


def main() -> int:
    from benchmarks.gpu import cache_checks, op_checks, sampling_checks

    with tempfile.TemporaryDirectory() as folder:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        section = Section("sanitizer", device, TINY, 1000.0, Path(folder, "rows.jsonl"))
        torch.manual_seed(0)
        for work in (
            cache_checks.check_rotary_table,
            cache_checks.check_moves,
            sampling_checks.check_sampling,
            sampling_checks.check_advance,
        ):
            work(section)
        for dtype in op_checks.dtypes(device):
            for cache_dtype in op_checks.cache_dtypes(device):
                for kind in (op_checks.DECODE[:2], op_checks.CHUNKS[:2]):
                    op_checks.attend(section, "small", kind, dtype, cache_dtype)
    return 1 if section.num_failures else 0


if __name__ == "__main__":
    sys.exit(main())
