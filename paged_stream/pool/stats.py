"""Statistics of a pool and its replicas."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

from paged_stream.engine.outputs import EngineStats
from paged_stream.engine.turn_counts import TurnCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """One replica at one moment.

    Args:
        number: its number; no other replica of the pool ever has the same.
        pid: id of its process.
        load: how many requests and turns run there.
        num_streams: how many streams live there.
        engine: its engine's statistics.
    """

    number: int
    pid: int
    load: int
    num_streams: int
    engine: EngineStats


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats(EngineStats):
    """A pool at one moment: the sums over its engines, and what helps to choose their number.

    Args:
        num_streams: open streams. Each lives on a replica, or on none until it is used again.
        replicas: the replicas that are ready.
        num_replicas: how many replicas are wanted.
        num_lost_replicas: how many replicas died since the start.
        num_restored_streams: how often a stream was restored on another replica.
        num_replayed_tokens: how many tokens were computed again for that.
    """

    replicas: list[ReplicaStats]
    num_replicas: int
    num_lost_replicas: int
    num_restored_streams: int
    num_replayed_tokens: int


def sum_stats(stats: Sequence[EngineStats]) -> dict[str, Any]:
    """Add up each field of `EngineStats` over several engines, or over none."""
    numbers = [field.name for field in fields(EngineStats) if field.name != "turns"]
    turns = reduce(operator.add, (each.turns for each in stats), TurnCounts().stats())
    return {name: sum(getattr(each, name) for each in stats) for name in numbers} | {"turns": turns}
