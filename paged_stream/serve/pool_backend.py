"""A pool of engines behind a service, with metrics of the pool and of each engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client.core import Metric

from paged_stream.pool.async_ray_llm import AsyncRayLLM
from paged_stream.pool.stats import PoolStats
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.serve.metrics import engine_families, family, render
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import ChatOptions
from paged_stream.text.inputs import Prompt

# As in `metrics`: of `PoolStats`, and of `ReplicaStats`.
_POOL = (
    ("wanted_replicas", "num_replicas", "Replicas that are wanted."),
    ("open_streams", "num_streams", "Open streams, those on no replica included."),
    ("lost_replicas_total", "num_lost_replicas", "Replicas that died."),
    ("restored_streams_total", "num_restored_streams", "Streams brought to another replica."),
    ("replayed_tokens_total", "num_replayed_tokens", "Tokens computed again for these streams."),
)
_REPLICA = (
    ("load", "load", "Requests and turns that the pool has sent."),
    ("streams", "num_streams", "Streams that live here."),
)


class PoolBackend:
    """The `Backend` of a service with replicas."""

    def __init__(self, pool: AsyncRayLLM) -> None:
        self.engine = pool

    async def encode(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[int]]:
        """As `Backend.encode`."""
        return await self.engine.encode(prompts, [params] * len(prompts))

    async def encode_chat(self, messages: Messages, options: ChatOptions) -> list[int]:
        """As `Backend.encode_chat`."""
        [token_ids] = await self.engine.encode_chats([messages], options)
        return token_ids

    async def health(self) -> dict[str, Any]:
        """As `Backend.health`."""
        stats = await self.engine.stats()
        return {
            "replicas": len(stats.replicas),
            "streams": stats.num_streams,
            "load": sum(replica.load for replica in stats.replicas),
        }

    async def metrics(self) -> bytes:
        """As `Backend.metrics`. A replica that takes the place of another has a number of its own,
        so no counter ever falls."""
        return render(_families(await self.engine.stats()))


def _families(stats: PoolStats) -> Iterator[Metric]:
    yield family("ready_replicas", "Replicas that are ready.", {None: len(stats.replicas)})
    for name, field, text in _POOL:
        yield family(name, text, {None: getattr(stats, field)})
    for name, field, text in _REPLICA:
        yield family(name, text, {r.number: getattr(r, field) for r in stats.replicas})
    yield from engine_families({r.number: r.engine for r in stats.replicas})
