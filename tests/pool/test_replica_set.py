"""Replicas that are ended before they have begun."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("ray")

from paged_stream import EngineConfig
from paged_stream.pool.replica import Replica
from paged_stream.pool.replica_set import ReplicaSet


@pytest.mark.parametrize("is_ready", [False, True])
def test_only_a_replica_that_is_ready_is_asked_to_close_its_engine(is_ready):
    asked = []

    async def answer(method):
        asked.append(method)

    async def run():
        replicas = ReplicaSet(EngineConfig(model="m"), 1)
        replica = Replica(0, process=None)
        replica.call, replica.is_ready = answer, is_ready
        replicas._replicas.append(replica)
        await replicas.close()
        assert replicas.replicas == []

    asyncio.run(run())
    assert asked == ["close_engine"] * is_ready
