from __future__ import annotations

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


def _supported_isas() -> list[str]:
    found, widest = [], ops.cpu_isa()
    for name in ("avx512", "avx2", "generic"):
        try:
            ops.set_cpu_isa(name)
        except RuntimeError:
            continue
        found.append(name)
    ops.set_cpu_isa(widest)
    return found


@pytest.fixture(params=_supported_isas())
def isa(request):
    """Runs the test once with the kernels of every instruction set that this machine has."""
    before = ops.cpu_isa()
    ops.set_cpu_isa(request.param)
    yield request.param
    ops.set_cpu_isa(before)
