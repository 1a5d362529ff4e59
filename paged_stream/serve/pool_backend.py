"""A pool of engines behind a service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paged_stream.engine.lora_request import named_adapters
from paged_stream.pool.async_ray_llm import AsyncRayLLM
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import ChatOptions
from paged_stream.text.inputs import Prompt


class PoolBackend:
    """The `Backend` of a service with replicas."""

    def __init__(self, pool: AsyncRayLLM) -> None:
        self.engine = pool
        self.adapters = named_adapters(pool.config.lora_modules or ())

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
