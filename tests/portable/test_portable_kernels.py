"""The portable kernels without torch: a driver compares them with plain float64 loops, on this
machine and, if Debian's cross compiler and qemu are installed, on emulated ARM."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "portable"
SOURCES = [ROOT / "csrc/cpu/isa/generic.cpp", *sorted(Path(__file__).parent.glob("*.cpp"))]
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
    BUILD.mkdir(parents=True, exist_ok=True)
    objects = []
    for source in SOURCES:
        command = [*compiler, *FLAGS, str(source)]
        preprocessed = subprocess.run([*command, "-E"], capture_output=True, check=True).stdout
        digest = hashlib.sha256(" ".join(command).encode() + preprocessed).hexdigest()[:20]
        objects.append(make(BUILD / f"{source.stem}-{digest}.o", [*command, "-c"]))
    digest = hashlib.sha256("".join(path.name for path in objects).encode()).hexdigest()[:20]
    return make(BUILD / f"{name}-{digest}", [*compiler, *FLAGS, *map(str, objects)])


def make(target: Path, command: list[str]) -> Path:
    if not target.exists():
        unfinished = target.with_suffix(f".{os.getpid()}")
        result = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
        assert result.returncode == 0, f"building {target.name} failed:\n{result.stderr}"
        unfinished.rename(target)
    return target


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
