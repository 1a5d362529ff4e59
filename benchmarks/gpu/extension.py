"""Sees to it that there is an op library for this device: the one that is there, or a new one."""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

from benchmarks.gpu.plan import BUILD_SECONDS
from benchmarks.gpu.processes import ROOT, capture
from benchmarks.gpu.rows import Row, line_of, write_row

_CHECK_SECONDS = 60  # the first process that loads torch may have to wait for the disk
# Says what the library is made of, and runs one of its kernels: there may be none for the device.
_CHECK = """
import torch
from paged_stream import ops
print(ops.build_version())
assert ops.has_cuda(), "it has no kernels for CUDA"
ops.silu_and_mul(torch.ones(1, 16, device="cuda")).sum().item()
print("it runs here")
"""
_ARCHITECTURE = "import torch; print('%d.%d' % torch.cuda.get_device_capability())"


def source_digest() -> str:
    """The digest of the sources that are there, as `ops.build_version` gives that of its own."""
    return runpy.run_path(str(ROOT / "csrc" / "source_digest.py"))["source_digest"]()


def prepare_extension(path: Path, ends: float, patience: float) -> bool | None:
    """Check the library that is there, and build one if it is not good.

    Args:
        path: of the rows.
        ends: when all has to be over, by `time.monotonic`.
        patience: how many times as long as on a machine with a GPU all may take.

    Returns:
        Whether it was built; ``None`` if there is no good library in the end.
    """
    print("extension", flush=True)
    seconds = _CHECK_SECONDS * patience
    problem = _problem(seconds)
    if problem is None:
        _record(path, ok=True, was="there", sources=source_digest())
        return False
    print(f"  the library that is there is not good: {problem}", flush=True)
    began = time.monotonic()
    problem = _build(min(BUILD_SECONDS * patience, ends - began)) or _problem(seconds)
    if problem is None:
        took = round(time.monotonic() - began)
        _record(path, ok=True, was="built", seconds=took, sources=source_digest())
        return True
    _record(path, ok=False, error=problem[-200:], detail=problem[-6000:])
    return None


def _record(path: Path, **fields: object) -> None:
    row: Row = {"section": "extension", "case": "extension", "name": "extension", **fields}
    write_row(path, row)
    print(line_of(row), flush=True)


def _problem(seconds: float) -> str | None:
    """What keeps the library from being used; ``None`` if it loads, is made of the sources that
    are there, and runs."""
    code, output = capture([sys.executable, "-c", _CHECK], seconds)
    lines = output.splitlines()
    digest = source_digest()
    if lines and lines[0] != digest and code == 0:
        return f"it was made of other sources, {lines[0]}; those that are there are {digest}"
    return None if code == 0 else output.strip()[-2000:]


def _build(seconds: float) -> str | None:
    """Compile the library in place, for this device alone; what went wrong, ``None`` if nothing."""
    code, output = capture([sys.executable, "-c", _ARCHITECTURE], seconds)
    if code != 0:
        return output
    capability = output.split()[-1]
    # Hopper's own instructions, and those of what came later, need the a.
    architecture = capability + "a" * (int(capability.split(".")[0]) >= 9)
    environment = {"TORCH_CUDA_ARCH_LIST": architecture, "MAX_JOBS": str(os.cpu_count())}
    # By force: what is there may be newer than the sources, and no good all the same.
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--force"]
    code, output = capture(command, seconds, environment)
    return None if code == 0 else output
