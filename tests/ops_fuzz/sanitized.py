"""Builds the op library with the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

from tests.compilation import build

ROOT = Path(__file__).parents[2]
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",  # as in setup.py
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-Wno-psabi",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    f"-I{sysconfig.get_path('include')}",
]


def compiler() -> list[str]:
    """The compiler's command, as words."""
    return shlex.split(os.environ.get("CXX", "g++"))


def build_library() -> Path:
    """Compile the changed sources and return the path of the extension module."""
    folders = [*(str(ROOT / "csrc" / name) for name in ("include", "cpu")), *include_paths()]
    libraries = [f"-L{path}" for path in library_paths()]
    return build(
        ROOT / "build" / "ops_fuzz",
        "library",
        [*compiler(), *FLAGS, *(f"-I{folder}" for folder in folders)],
        [ROOT / "csrc/registration.cpp", *sorted((ROOT / "csrc/cpu").rglob("*.cpp"))],
        ["-shared", *libraries, "-lc10", "-ltorch_cpu"],
    )


def runtimes() -> list[Path]:
    """What a process must load first: the address sanitizer's runtime, and the C++ library, whose
    functions it replaces. Empty if the compiler has no such runtime."""
    found = [_compilers_file(name) for name in ("libasan.so", "libstdc++.so")]
    return found if all(path.exists() for path in found) else []


def _compilers_file(name: str) -> Path:
    command = [*compiler(), f"-print-file-name={name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return Path(found).resolve()  # the name alone if there is none


def run_fuzzer(library: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `fuzz` on a library from `build_library` in a process of its own."""
    sanitizer = [
        *("detect_leaks=0", "allocator_may_return_null=1", "max_allocation_size_mb=1024"),
        *("detect_stack_use_after_return=0", "abort_on_error=0"),
    ]
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(map(str, runtimes())),
        "ASAN_OPTIONS": ":".join(sanitizer),
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.ops_fuzz.process", str(library), *options]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
