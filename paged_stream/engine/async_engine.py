"""The engine for asyncio services: a thread of its own computes, coroutines wait for deltas."""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack, overload

from paged_stream.config import EngineConfig, takes_config
from paged_stream.engine.adapters import NO_ADAPTER, Chosen, check_adapter
from paged_stream.engine.api import AsyncDeltas, AsyncEngineApi, FilePath, OnEvict, Scores
from paged_stream.engine.async_stream import (
    AsyncStream,
    AsyncStreams,
    beside_the_loop,
    check_beside_the_loop,
)
from paged_stream.engine.async_thread import AsyncThread
from paged_stream.engine.core import EngineCore
from paged_stream.engine.intake import Intake
from paged_stream.engine.lifetime import EngineStoppedError, StreamLostError, when_abandoned
from paged_stream.engine.loaded_engine import LoadedEngine
from paged_stream.engine.lora_request import LoRARequest
from paged_stream.engine.mailbox import Mailbox
from paged_stream.engine.outputs import EmbeddingRequestOutput, EngineStats, RequestDelta
from paged_stream.engine.requests import (
    embedding_of,
    embedding_outputs,
    prompt_list_of,
    request_names,
    scores_of,
    split_prompts,
)
from paged_stream.engine.stats import engine_stats
from paged_stream.engine.stream_file import write_stream_file
from paged_stream.scheduler.fields import as_int
from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import (
    ChatOptions,
    ChatSettings,
    WritingOptions,
    WritingSettings,
)
from paged_stream.text.inputs import Prompt, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class AsyncLLMEngine(LoadedEngine, AsyncEngineApi):
    """Runs requests and streams on one model, for any number of coroutines, threads and event
    loops, also one loop after another.

    Args:
        config: the engine's settings.
        max_unread: once so many deltas of a request or turn are unread, the engine passes it over
            until somebody reads; at least 1.

    Raises:
        ValueError: as `LLMEngine`. The model is loaded before the constructor returns.
    """

    @takes_config
    def __init__(self, config: EngineConfig, *, max_unread: int = 16) -> None:
        max_unread = as_int("max_unread", max_unread, 1)
        super().__init__(config)
        self.thread = AsyncThread(self._core, max_unread)
        self.streams = AsyncStreams(self.thread)
        self._names = request_names()
        self.thread.start(self.streams)
        name = f"AsyncLLMEngine of {config.model!r}"
        when_abandoned(self.streams, name, self._core.lifetime)

    # Requests

    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> AsyncDeltas:
        """As `AsyncEngineApi.generate`."""
        params = SamplingParams() if sampling_params is None else sampling_params
        return self._request(
            lambda: beside_the_loop(self.intake.encode, prompt),
            params,
            request_id,
            priority,
            lora_request,
        )

    def chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
        **options: Unpack[ChatSettings],
    ) -> AsyncDeltas:
        """As `AsyncEngineApi.chat`."""
        written = ChatOptions(**options)
        return self._request(
            lambda: asyncio.to_thread(self.intake.encode_chat, messages, written),
            whole_answer(sampling_params),
            request_id,
            priority,
            lora_request,
        )

    def _request(
        self,
        encode: Callable[[], Awaitable[list[int]]],
        params: SamplingParams,
        request_id: str | None,
        priority: int,
        lora_request: LoRARequest | None,
    ) -> AsyncDeltas:
        intake, core, names = self._intake, self._core, self._names
        name = request_id

        async def prepare() -> tuple[list[int], Chosen]:
            await check_beside_the_loop(intake.prompts, params)
            adapter = await choose_adapter(self.intake, lora_request)
            return await encode(), adapter

        def start(mailbox: Mailbox, prepared: tuple[list[int], Chosen]) -> None:
            nonlocal name
            if name is None:
                name = _free_name(core, names)
            token_ids, adapter = prepared
            intake.add_request(
                name, token_ids, params, priority=priority, adapter=adapter, inbox=mailbox
            )
            mailbox.num_unfinished = params.n

        def stop(mailbox: Mailbox) -> None:
            assert name is not None  # as it has started
            core.turns.drop(name)

        return self.thread.deltas(prepare, start, stop)

    @overload
    async def score(  # type: ignore[overload-overlap]
        self, prompts: Prompt, *, lora_request: LoRARequest | None = None
    ) -> Scores: ...

    @overload
    async def score(
        self, prompts: Sequence[Prompt], *, lora_request: LoRARequest | None = None
    ) -> list[Scores]: ...

    async def score(
        self, prompts: Prompt | Sequence[Prompt], *, lora_request: LoRARequest | None = None
    ) -> Scores | list[Scores]:
        """As `EngineApi.score`."""
        self.thread.check()
        prompt_list, is_one = split_prompts(prompts)
        token_ids = await asyncio.to_thread(self.intake.encode_all, prompt_list)
        scores: list[Scores] = [[None] for _ in token_ids]
        wanted = {index: ids for index, ids in enumerate(token_ids) if len(ids) > 1}
        add = partial(
            self._intake.add_scoring, adapter=await choose_adapter(self.intake, lora_request)
        )
        async with aclosing(self._compute(wanted, add)) as found:
            async for index, delta in found:
                scores[index] += scores_of(delta)
        return scores[0] if is_one else scores

    async def embed(
        self, prompts: Prompts, *, lora_request: LoRARequest | None = None
    ) -> list[EmbeddingRequestOutput]:
        """As `EngineApi.embed`."""
        self.thread.check()
        prompt_list = prompt_list_of(prompts)
        token_ids = await asyncio.to_thread(self.intake.encode_all, prompt_list)
        embeddings = [list[float]() for _ in token_ids]
        wanted = dict(enumerate(token_ids))
        adapter = await choose_adapter(self.intake, lora_request)
        add = partial(self._intake.add_embedding, adapter=adapter)
        async with aclosing(self._compute(wanted, add)) as found:
            async for index, delta in found:
                embeddings[index] = embedding_of(delta)
        return embedding_outputs(prompt_list, token_ids, embeddings)

    async def _compute(
        self, token_ids: Mapping[int, list[int]], add: Callable[..., None]
    ) -> AsyncGenerator[tuple[int, RequestDelta], None]:
        """Compute prompts together, and yield what each of them gives, with its key.

        Args:
            add: adds one to the engine, by a name, with an inbox.
        """
        core, names = self._core, self._names
        keys: dict[str, int] = {}

        async def prepare() -> None:
            pass

        def start(mailbox: Mailbox, _: None) -> None:
            keys.update({_free_name(core, names): key for key in token_ids})
            mailbox.num_unfinished = len(keys)
            mailbox.limit *= max(1, len(keys))  # each may have as many unread as one alone
            if not keys:
                mailbox.end()
            try:
                for name, key in keys.items():
                    add(name, token_ids[key], inbox=mailbox)
            except BaseException:  # the cache is too small for this one, but not for all
                stop(mailbox)
                raise

        def stop(mailbox: Mailbox) -> None:
            for name in keys:
                core.turns.drop(name)

        async with aclosing(self.thread.deltas(prepare, start, stop)) as deltas:
            async for delta in deltas:
                yield keys[delta.request_id], delta

    async def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """As `EngineApi.get_tokenizer`."""
        self.thread.check()
        return await asyncio.to_thread(self.intake.prompts.tokenizer_copy)

    async def abort(self, request_id: str) -> None:
        """As `AsyncEngineApi.abort`."""
        await self.thread.call(lambda: self._core.turns.abort(request_id))

    # Streams

    async def open_stream(
        self,
        *,
        num_sink_tokens: int | None = None,
        window_size: int | None = None,
        pin: Prompt | Messages | None = None,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
        **options: Unpack[WritingSettings],
    ) -> AsyncStream:
        """As `EngineApi.open_stream`. ``on_evict`` is called in the engine's thread."""
        self.thread.check()
        intake, writing = self.intake, WritingOptions(**options)
        opening = await beside_the_loop(
            lambda pin: intake.prepare_stream(num_sink_tokens, window_size, pin, writing), pin
        )
        adapter = await choose_adapter(self.intake, lora_request)
        return await self.streams.add(lambda: intake.open_stream(opening, on_evict, adapter))

    async def load_stream(
        self,
        source: FilePath | bytes,
        *,
        on_evict: OnEvict | None = None,
        lora_request: LoRARequest | None = None,
    ) -> AsyncStream:
        """As `EngineApi.load_stream`."""
        self.thread.check()
        intake = self.intake
        adapter = await choose_adapter(self.intake, lora_request)
        saved = await asyncio.to_thread(intake.read_stream, source)
        return await self.streams.add(lambda: intake.restore_stream(saved, on_evict, adapter))

    # Adapters

    async def add_lora(self, lora_request: LoRARequest) -> None:
        """As `EngineApi.add_lora`."""
        self.thread.check()
        check_adapter(lora_request, optional=False)
        adapter = await choose_adapter(self.intake, lora_request)
        await self.thread.call(lambda: self._core.adapters.key(adapter))

    async def remove_lora(self, lora_id: int) -> bool:
        """As `EngineApi.remove_lora`."""
        return await self.thread.call(lambda: self._core.adapters.remove(lora_id))

    async def list_loras(self) -> set[int]:
        """As `EngineApi.list_loras`."""
        return await self.thread.call(lambda: self._core.adapters.numbers())

    async def stats(self) -> EngineStats:
        """As `EngineApi.stats`, between two steps."""
        return await self.thread.call(lambda: engine_stats(self._core))

    # The end

    async def shutdown(self, save_dir: FilePath | None = None) -> dict[AsyncStream, Path]:
        """Close the engine, and save its open streams first if you say where.

        Args:
            save_dir: save every open stream there. One that is generating stops where it is.

        Returns:
            Where each stream was saved. One that was lost is not among them.

        Raises:
            EngineStoppedError: there is a ``save_dir``, but the engine has stopped already.
            OSError: a file cannot be written. The engine goes on, so that you can try again; what
                was generating is over.
        """
        saved: dict[AsyncStream, Path] = {}
        if save_dir is not None:
            folder = Path(save_dir).expanduser()
            saved = await self.thread.call(lambda: self._save_streams(folder))
        await asyncio.to_thread(self.thread.stop)
        return saved

    async def close(self) -> None:
        """As `AsyncEngineApi.close`."""
        await self.shutdown()

    def _save_streams(self, folder: Path) -> dict[AsyncStream, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        for mailbox in list(self.thread.mailboxes):
            mailbox.release()
            mailbox.end(EngineStoppedError("the engine is being shut down"))
        saved = {}
        for stream in list(self.streams.open):
            # A name of its own: streams of an earlier shutdown may lie there.
            path = folder / f"stream-{uuid.uuid4().hex}.safetensors"
            try:
                while not stream.inner.is_settled:
                    self._core.advance()
                write_stream_file(path, stream.inner.snapshot())
            except StreamLostError as error:  # the others are to be saved all the same
                logger.error("not saved: %s", error)
            else:
                saved[stream] = path
        self.thread.is_stopping = True  # before anybody can go on with a stream
        return saved

    async def __aenter__(self) -> Self:
        self.thread.check()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


async def choose_adapter(intake: Intake, lora_request: LoRARequest | None) -> Chosen:
    """As `Intake.choose_adapter`, which may look at the disk or fetch something."""
    if lora_request is None:
        return NO_ADAPTER
    return await asyncio.to_thread(intake.choose_adapter, lora_request)


def _free_name(core: EngineCore, names: Iterator[str]) -> str:
    """A name that no request has; for the engine's thread."""
    return next(itertools.filterfalse(core.turns.is_in_use, names))
