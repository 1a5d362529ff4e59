"""The worker pool of the kernels by itself, under the sanitizers, and as engines use it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from paged_stream import ops

ROOT = Path(__file__).parents[2]
SOURCES = [
    Path(__file__).with_name("worker_pool_driver.cpp"),
    ROOT / "csrc/cpu/threads/worker_pool.cpp",
]
COMPILER = shlex.split(os.environ.get("CXX", "g++"))


def _compile(folder: Path, flags: list[str], sources: list[Path]) -> Path:
    program = folder / "driver"
    command = [*COMPILER, "-std=c++20", "-O1", "-g", "-pthread", *flags]
    command += [f"-I{ROOT / 'csrc/cpu'}", *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program


@pytest.fixture(scope="module", params=["thread", "address,undefined"])
def sanitized(request, tmp_path_factory):
    """The driver, built with a sanitizer."""
    folder = tmp_path_factory.mktemp("worker_pool")
    flags = [f"-fsanitize={request.param}", "-fno-sanitize-recover=all"]
    (folder / "empty.cpp").write_text("int main() {}\n")
    try:
        _compile(folder, flags, [folder / "empty.cpp"])
    except subprocess.CalledProcessError:
        pytest.skip(f"{COMPILER[0]} has no runtime of the {request.param} sanitizer")
    return _compile(folder, flags, SOURCES)


@pytest.mark.parametrize("mode", ["hammer", "fork", "exit"])
def test_many_callers_nested_calls_exceptions_forks_and_exits(sanitized, mode):
    options = {
        "ASAN_OPTIONS": "detect_leaks=0",  # threads at work when the process ends hold memory
        "TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0",  # else a child may start no threads
    }
    # At random addresses, the thread sanitizer of an older compiler finds no place for its own.
    command = ["setarch", "-R", str(sanitized), mode]
    result = subprocess.run(command, env=os.environ | options, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]


def test_ops_compute_in_a_forked_child():
    torch.set_num_threads(4)
    weight = ops.pack_linear_weight(torch.randn(1024, 512))
    rows = torch.randn(8, 512)
    expected = ops.linear(rows, weight, None, 1024)
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # what hangs is killed
        same = torch.equal(ops.linear(rows, weight, None, 1024), expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
