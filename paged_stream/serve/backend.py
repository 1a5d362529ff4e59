"""What a service has behind it: an engine or a pool, and what the contract does not offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from paged_stream.engine.api import AsyncEngineApi
from paged_stream.engine.lora_request import LoRARequest
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import ChatOptions
from paged_stream.text.inputs import Prompt


class Backend(Protocol):
    """The back of a service."""

    @property
    def engine(self) -> AsyncEngineApi:
        """The engine that answers. Whoever made it closes it."""
        ...

    @property
    def adapters(self) -> Mapping[str, LoRARequest]:
        """The adapters that are offered, by their names."""
        ...

    async def encode(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[int]]:
        """Tokenize prompts, and check them together with their parameters.

        Raises:
            ValueError: as `AsyncEngineApi.generate`.
        """
        ...

    async def encode_chat(self, messages: Messages, options: ChatOptions) -> list[int]:
        """Tokenize a conversation in the model's chat template.

        Raises:
            ValueError: as `AsyncEngineApi.chat`.
        """
        ...

    async def health(self) -> Mapping[str, Any]:
        """The answer to ``/health``."""
        ...
