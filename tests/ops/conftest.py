from __future__ import annotations

import pytest

from paged_stream import ops


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
