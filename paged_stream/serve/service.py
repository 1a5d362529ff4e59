"""What the routes of one application share: what answers, under which name, its vocabulary, what a
request may bring, and the streams, conversations and answers in the background that it keeps."""

from __future__ import annotations

import time
from dataclasses import replace

from paged_stream.engine.lora_request import LoRARequest
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.serve.backend import Backend
from paged_stream.serve.background import Background
from paged_stream.serve.conversation_store import ConversationStore
from paged_stream.serve.errors import UnknownModelError
from paged_stream.serve.open_streams import OpenStreams
from paged_stream.serve.prompt_limit import PromptLimit
from paged_stream.serve.serve_options import ServeOptions
from paged_stream.serve.token_texts import Vocabulary
from paged_stream.serve.tools import ToolUse
from paged_stream.text.chat_options import ChatOptions
from paged_stream.text.tool_calls import READERS, CallFormat, format_of


class Service:
    """One model, as clients know it.

    Args:
        model: its name.
        options: of the service.

    Raises:
        ValueError: as `OpenStreams`.
    """

    def __init__(self, backend: Backend, model: str, options: ServeOptions) -> None:
        self.backend = backend
        self.model = model
        self.started = int(time.time())
        self.vocabulary = Vocabulary(backend.engine)
        self.prompt_limit = PromptLimit(self.vocabulary, options.max_prompt_tokens)
        self.streams = OpenStreams(backend.engine, options)
        self.conversations = ConversationStore(self.streams)
        self.background = Background()

    @property
    def models(self) -> list[str]:
        """The names that requests may ask for: of the model, and of its adapters."""
        return [self.model, *self.backend.adapters]

    def adapter(self, name: str | None) -> LoRARequest | None:
        """What a request is to be computed with; one that names no model is for the model itself.

        Raises:
            UnknownModelError: there is no such model.
        """
        if name is None or name == self.model:
            return None
        if name not in self.backend.adapters:
            known = ", ".join(map(repr, self.models))
            raise UnknownModelError(f"there is no model {name!r}; this is {known}")
        return self.backend.adapters[name]

    async def reading(
        self, use: ToolUse, options: ChatOptions, params: SamplingParams
    ) -> tuple[CallFormat | None, SamplingParams]:
        """How calls of tools are found in an answer: the format that the model writes them in, if
        it does, and parameters with which the text shows what begins them."""
        if not use.is_read:
            return None, params
        texts = await self.vocabulary.texts()
        call_format = format_of(texts.tokenizer.chat_template(options))
        if texts.has_special(READERS[call_format].marks):
            params = replace(params, skip_special_tokens=False)
        return call_format, params

    async def rest(self) -> None:
        """End what is kept, and write it to files if there is a folder for them."""
        await self.background.end()
        await self.streams.rest()
        self.conversations.rest()
        if self.streams.has_files:
            self.streams.files.release()
