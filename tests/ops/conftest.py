from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from paged_stream import ops


@pytest.fixture(autouse=True)
def one_thread():
    """Threads make the small tensors of these tests slow; what tests threads sets its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _supported_isas(*names: str) -> list[str]:
    found, widest = [], ops.cpu_isa()
    for name in names:
        try:
            ops.set_cpu_isa(name)
        except RuntimeError:
            continue
        found.append(name)
    ops.set_cpu_isa(widest)
    return found


@contextmanager
def _using(name: str) -> Iterator[str]:
    before = ops.cpu_isa()
    ops.set_cpu_isa(name)
    yield name
    ops.set_cpu_isa(before)


@pytest.fixture(params=_supported_isas("avx512bf16", "avx512", "avx2", "generic"))
def isa(request):
    """Runs the test once with the kernels of every instruction set that this machine has."""
    with _using(request.param) as name:
        yield name


@pytest.fixture(params=_supported_isas("avx512vnni", "avx512", "avxvnni", "avx2", "generic"))
def quantized_isa(request):
    """The same for the kernels of quantised weights, of which there are more."""
    with _using(request.param) as name:
        yield name
