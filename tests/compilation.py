"""Compiles C++ for tests. Objects are kept under a hash of what they were made of, so only changed
sources are compiled again. ``MAX_JOBS`` limits how many compilers run at a time."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def build(
    folder: Path, name: str, compiler: list[str], sources: Iterable[Path], link: Iterable[str] = ()
) -> Path:
    """Compile the changed sources and return the path of the program or library.

    Args:
        folder: where objects and results are kept.
        name: what the result's name starts with.
        compiler: the command with all its flags.
        sources: files to compile.
        link: further flags, for linking only.

    Raises:
        RuntimeError: the compiler failed or printed a warning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(lambda source: _compile(folder, compiler, source), sources))
    command = [*compiler, *map(str, objects), *link]
    return _make(folder / f"{name}-{_digest(' '.join(command).encode())}", command)


def _compile(folder: Path, compiler: list[str], source: Path) -> Path:
    command = [*compiler, str(source)]
    preprocessed = subprocess.run([*command, "-E"], capture_output=True, check=True).stdout
    digest = _digest(" ".join(command).encode() + preprocessed)
    return _make(folder / f"{source.stem}-{digest}.o", [*command, "-c"])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:20]


def _make(target: Path, command: list[str]) -> Path:
    if not target.exists():
        unfinished = target.with_suffix(f".{os.getpid()}")
        result = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
        if result.returncode or "warning:" in result.stderr:
            raise RuntimeError(f"building {target.name} failed:\n{result.stderr}")
        unfinished.rename(target)
    return target
