"""Runs the CUDA kernels of ``csrc/cuda`` on the host, compiled with g++ against an emulated device.

``emulator.h`` replaces the parts of CUDA that ``device.cuh`` uses: threads are fibers, warp-wide
operations wait for 32 of them, and asynchronous copies arrive only when they are waited for.
``driver.cpp`` runs every call under several thread orders and several contents of uninitialised
shared memory, on buffers of exactly their size, with the address and undefined-behaviour sanitizers
on. Results must be bit-identical each time. So a missing barrier, an uninitialised read, an
out-of-bounds address, a misaligned access and lanes that never meet are errors here, before the
kernel runs on a GPU.

An op's entry (``EMULATED(name)`` in a .cpp file here) fills the kernel's parameters from the
arguments of `Emulator.call` and launches the kernel.
"""

from __future__ import annotations

import os
import shlex
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from tests import compilation

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "cuda_emulator"
SANITIZERS = ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FLAGS = [
    "-std=c++20",
    "-O1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-DPAGED_STREAM_EMULATE",
]


class EmulatorError(RuntimeError):
    """The kernel has a defect, which the message describes."""


def build(
    kernels: Path = ROOT / "csrc",
    names: Sequence[str] = ("*",),
    flags: Sequence[str] = SANITIZERS,
    folder: Path = BUILD,
) -> Path:
    """Compile the changed sources and return the path of the emulator's program.

    Args:
        kernels: the folder ``csrc``, or a copy of it.
        names: patterns of the sources here to compile, without their ending.
        flags: further flags for the compiler; fibers need the address sanitizer.
        folder: where objects and the program are kept.
    """
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    here = Path(__file__).parent
    include = [f"-I{path}" for path in (kernels / "include", kernels / "cuda", here)]
    sources = sorted(path for name in names for path in here.glob(f"{name}.cpp"))
    return compilation.build(folder, "emulator", [*compiler, *FLAGS, *flags, *include], sources)


class Emulator:
    """A process that runs kernels; it is restarted after a sanitizer has ended it."""

    def __init__(self, program: Path | None = None) -> None:
        """program: from `build`; by default, of the kernels as they are."""
        self._program = program or build()
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, entry: str, *args: torch.Tensor | int | float | None) -> None:
        """Run an entry. The kernel's writes appear in the tensors, which must be contiguous.

        Raises:
            EmulatorError: threads race or never meet, or a sanitizer found a defect.
        """
        if self._process is None:
            environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0"}
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                [self._program], stdin=pipe, stdout=pipe, stderr=pipe, env=environment
            )
        process = self._process
        assert process.stdin and process.stdout and process.stderr
        try:
            process.stdin.write(_request(entry, args))
            process.stdin.flush()
        except BrokenPipeError:
            pass  # the process has ended; its last message is read below
        status = process.stdout.read(1)
        if status == b"":
            self._process = None
            message = process.stderr.read().decode(errors="replace")
            process.wait()
            raise EmulatorError(message)
        if status == b"\0":
            (size,) = struct.unpack("<I", process.stdout.read(4))
            raise EmulatorError(process.stdout.read(size).decode())
        for arg in args:
            if isinstance(arg, torch.Tensor) and arg.numel():
                data = bytearray(process.stdout.read(arg.numel() * arg.element_size()))
                arg.view(torch.uint8).copy_(
                    torch.frombuffer(data, dtype=torch.uint8).view(arg.view(torch.uint8).shape)
                )

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


def _request(entry: str, args: tuple[torch.Tensor | int | float | None, ...]) -> bytes:
    name = entry.encode()
    parts = [struct.pack("<I", len(name)), name, struct.pack("<I", len(args))]
    for arg in args:
        if isinstance(arg, torch.Tensor):
            assert arg.is_contiguous()
            data = arg.reshape(-1).view(torch.uint8).numpy().tobytes()
            parts += [struct.pack("<BQ", 2, len(data)), data]
        elif arg is None:
            parts.append(b"\3")
        elif isinstance(arg, float):
            parts.append(struct.pack("<Bd", 1, arg))
        else:
            parts.append(struct.pack("<Bq", 0, arg))
    return b"".join(parts)
