"""The portable kernels without torch: a driver compares them with plain float64 loops, on this
machine and, if Debian's cross compiler and qemu are installed, on emulated ARM."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import compilation

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "portable"
KERNELS = [ROOT / "csrc/cpu/isa/generic.cpp", ROOT / "csrc/cpu/ops/quantized_blocks.cpp"]
SOURCES = [*KERNELS, *sorted(Path(__file__).parent.glob("*.cpp"))]
FLAGS = [
    "-std=c++20",
    "-O2",
    "-ffp-contract=fast",  # as in setup.py
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-psabi",
    "-static",  # so that qemu needs no libraries of the target
    *(f"-I{ROOT / folder}" for folder in ("csrc/include", "csrc/cpu", "tests/portable")),
]


def build(compiler: list[str], name: str) -> Path:
    """Compile the changed sources and return the path of the driver."""
    return compilation.build(BUILD, name, [*compiler, *FLAGS], SOURCES)


def check(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith(" results, 0 of them wrong\n")


def test_on_this_machine():
    check([str(build(shlex.split(os.environ.get("CXX", "g++")), "native"))])


def test_on_arm():
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    for program, package in ((compiler, "g++-aarch64-linux-gnu"), (emulator, "qemu-user")):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} (Debian: apt-get install {package})")
    check([emulator, str(build([compiler], "aarch64"))])
