"""Replicas that are ended before they have begun."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("ray")

from paged_stream import EngineConfig
from paged_stream.pool.replica_set import Member, ReplicaSet


@pytest.mark.parametrize("is_ready", [False, True])
def test_only_a_replica_that_is_ready_is_asked_to_close_its_engine(is_ready):
    asked = []

    async def answer(method):
        asked.append(method)

    async def run():
        replicas = ReplicaSet(EngineConfig(model="m"), 1)
        member = Member(0, actor=None)
        member.call, member.is_ready = answer, is_ready
        replicas._members.append(member)
        await replicas.close()
        assert replicas.members == []

    asyncio.run(run())
    assert asked == ["close_engine"] * is_ready
