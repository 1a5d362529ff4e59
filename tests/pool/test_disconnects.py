"""Clients that leave at any moment, through HTTP and through the pool's coroutines."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("ray")

from benchmarks import disconnects
from benchmarks.bench_stream import tiny_model

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("through", disconnects.SERVICES)
def test_clients_that_leave_harm_nobody(ray, tmp_path, through):
    tiny_model(tmp_path)
    counts = asyncio.run(
        disconnects.run(
            through,
            str(tmp_path),
            num_neighbours=2,
            num_guests=8,
            visits=48,
            longest=0.4,
            blocks=1,
        )
    )
    assert not {name: counts[name] for name in disconnects.MUST_BE_NONE if counts[name]}
    assert counts["cut_off"] >= 10
    assert counts["answers"] >= 2
