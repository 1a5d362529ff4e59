"""The program that runs single kernels on a device without torch: where it is, and how it is made.

python -m benchmarks.gpu.driver 9.0a        # for this architecture; no device is needed
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu.processes import ROOT

FOLDER = ROOT / "build" / "gpu_driver"
_TESTS = Path("tests", "cuda_emulator")
_SOURCES = ("attention.cpp", "decode_entries.cpp", "device_driver.cu", "op_entries.cpp")
_FLAGS = ["-std=c++20", "-O3", "-lineinfo", "-x", "cu"]


def path_of_driver() -> Path:
    """Where the program of the sources that are there is, or is to be."""
    digest = runpy.run_path(str(ROOT / "csrc" / "source_digest.py"))["source_digest"]
    return FOLDER / f"driver-{digest(str(_TESTS))}"


def build_driver(architecture: str) -> Path:
    """Compile the program, unless it is there.

    Args:
        architecture: such as "9.0a".

    Raises:
        RuntimeError: it could not be compiled.
    """
    target = path_of_driver()
    if target.exists():
        return target
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        raise RuntimeError("there is no nvcc to compile the driver with")
    number = architecture.replace(".", "")
    code = f"-gencode=arch=compute_{number},code=sm_{number}"
    include = [f"-I{ROOT / name}" for name in ("csrc/include", "csrc/cuda", _TESTS)]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:

        def compile_one(name: str) -> str:
            compiled = str(Path(folder, f"{name}.o"))
            source = str(ROOT / _TESTS / name)
            _run([nvcc, code, *_FLAGS, *include, "-c", source, "-o", compiled])
            return compiled

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            objects = list(pool.map(compile_one, _SOURCES))
        whole = str(Path(folder, "driver"))
        _run([nvcc, code, *objects, "-o", whole])
        Path(whole).rename(target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command} failed: {(done.stdout + done.stderr)[-3000:]}")


if __name__ == "__main__":
    print(build_driver(*sys.argv[1:]))
