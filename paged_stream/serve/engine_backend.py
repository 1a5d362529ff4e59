"""One engine behind a service."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from paged_stream.engine.async_engine import AsyncLLMEngine
from paged_stream.engine.lora_request import named_adapters
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import ChatOptions
from paged_stream.text.inputs import Prompt, naming_item


class EngineBackend:
    """The `Backend` of a service without replicas."""

    def __init__(self, engine: AsyncLLMEngine) -> None:
        self.engine = engine
        self.adapters = named_adapters(engine.config.lora_modules or ())

    async def encode(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[int]]:
        """As `Backend.encode`."""
        return await asyncio.to_thread(self._encode, prompts, params)

    def _encode(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[int]]:
        encoder, token_ids = self.engine.intake.prompts, []
        encoder.check_params(params)
        for index, prompt in enumerate(prompts):
            with naming_item("prompts", index, len(prompts)):
                token_ids.append(encoder.truncate(self.engine.encode(prompt), params))
        return token_ids

    async def encode_chat(self, messages: Messages, options: ChatOptions) -> list[int]:
        """As `Backend.encode_chat`."""
        return await asyncio.to_thread(self.engine.intake.encode_chat, messages, options)

    async def health(self) -> dict[str, Any]:
        """As `Backend.health`."""
        stats = await self.engine.stats()
        load = stats.num_running + stats.num_waiting
        return {"replicas": 1, "streams": stats.num_streams, "load": load}
