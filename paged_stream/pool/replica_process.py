"""What runs in a replica's process: an engine, and the pool's requests and streams by name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paged_stream.config import EngineConfig
from paged_stream.engine.async_engine import AsyncLLMEngine, choose_adapter
from paged_stream.engine.async_stream import (
    AsyncStream,
    beside_the_loop,
    check_beside_the_loop,
)
from paged_stream.engine.lora_request import LoRARequest
from paged_stream.engine.outputs import EngineStats, RequestDelta, StreamStats, VisibleText
from paged_stream.engine.stream_file import stream_bytes, write_stream_file
from paged_stream.pool.delta_batches import DeltaBatches
from paged_stream.pool.messages import ChatFacts, StreamFacts
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.system.trace_context import from_headers, within
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import ChatOptions, StreamChatOptions
from paged_stream.text.conversation import Conversation
from paged_stream.text.inputs import Prompt, naming_item

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ReplicaProcess:
    """Ray calls its methods, all in one event loop. What they return lets the pool keep track of
    each stream's tokens."""

    def __init__(self) -> None:
        self._engine: AsyncLLMEngine
        self._is_loaded = False
        self._requests: dict[str, DeltaBatches] = {}
        self._turns: dict[str, DeltaBatches] = {}
        self._streams: dict[str, AsyncStream] = {}
        self._appends: dict[str, asyncio.Task[list[int]]] = {}

    async def load(self, config: EngineConfig) -> int:
        """Load the model; returns the process's id."""
        self._engine = await asyncio.to_thread(AsyncLLMEngine, config)
        self._is_loaded = True
        return os.getpid()

    async def beat(self, seconds: float) -> None:
        """Answer after so many seconds, which shows that the process lives. The pool always waits
        for one of these answers, and so hears at once when the process dies.

        Raises:
            EngineStoppedError: the engine has failed.
        """
        await asyncio.sleep(seconds)
        self._engine.thread.check()

    async def call_within(self, trace: dict[str, str], method: str, *args: Any) -> Any:
        """Call one of the other methods where the caller's span is current."""
        with within(from_headers(trace)):
            return await getattr(self, method)(*args)

    async def stats(self) -> EngineStats:
        return await self._engine.stats()

    async def close_engine(self) -> None:
        """End the engine and its processes. If the model is still being loaded, do nothing."""
        if self._is_loaded:
            await self._engine.close()

    async def encode(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams]
    ) -> list[list[int]]:
        """Tokenize prompts, and check them together with their parameters."""
        encoder = self._engine.intake.prompts
        for each in params:
            await check_beside_the_loop(encoder, each)
            encoder.check_params(each)
        token_ids = []
        pairs = zip(prompts, params or [SamplingParams()] * len(prompts), strict=True)
        for index, (prompt, each) in enumerate(pairs):
            with naming_item("prompts", index, len(prompts)):
                encoded = await beside_the_loop(self._engine.encode, prompt)
                token_ids.append(encoder.truncate(encoded, each))
        return token_ids

    async def encode_chats(
        self, conversations: Sequence[Messages], options: ChatOptions
    ) -> list[list[int]]:
        """Tokenize conversations in the chat template."""
        token_ids = []
        for index, messages in enumerate(conversations):
            with naming_item("messages", index, len(conversations)):
                encoded = asyncio.to_thread(self._engine.intake.encode_chat, messages, options)
                token_ids.append(await encoded)
        return token_ids

    async def score(
        self, token_ids: list[int], lora_request: LoRARequest | None
    ) -> list[float | None]:
        return await self._engine.score(token_ids, lora_request=lora_request)

    async def embed(self, token_ids: list[int], lora_request: LoRARequest | None) -> list[float]:
        [output] = await self._engine.embed(token_ids, lora_request=lora_request)
        return output.outputs.embedding

    # Adapters

    async def add_lora(self, lora_request: LoRARequest) -> None:
        await self._engine.add_lora(lora_request)

    async def remove_lora(self, lora_id: int) -> bool:
        return await self._engine.remove_lora(lora_id)

    async def list_loras(self) -> set[int]:
        return await self._engine.list_loras()

    async def get_tokenizer(self) -> PreTrainedTokenizerBase:
        return await self._engine.get_tokenizer()

    # Requests

    async def start_request(
        self,
        name: str,
        prompt: Prompt,
        params: SamplingParams,
        priority: int,
        lora_request: LoRARequest | None,
    ) -> None:
        deltas = self._engine.generate(
            prompt, params, request_id=name, priority=priority, lora_request=lora_request
        )
        self._requests[name] = DeltaBatches(deltas)

    async def take_request(self, name: str) -> list[RequestDelta]:
        """Wait for what was generated since the last call. Nothing comes after the end."""
        return await self._requests[name].take()

    async def stop_request(self, name: str) -> None:
        """Stop a request where it is. What was generated may still be taken."""
        if name in self._requests:
            await self._requests[name].stop()

    async def forget_request(self, name: str) -> None:
        """Drop a request, finished or not."""
        if (batches := self._requests.pop(name, None)) is not None:
            await batches.stop()

    # Streams

    async def restore(
        self,
        name: str,
        options: dict[str, Any],
        source: str | bytes | None,
        token_ids: Sequence[int],
        conversation: Conversation | None,
        is_continued: bool = False,
    ) -> StreamFacts:
        """Open a stream, or restore one.

        Args:
            options: keyword arguments of `AsyncLLMEngine.open_stream`; if there is a file, only
                its adapter counts.
            source: the path of a saved stream, or its content.
            token_ids: tokens to append.
            conversation: what is remembered of the messages in it, if that is not what the file or
                the options say.
            is_continued: a turn began behind the last token of the file.
        """
        intake = self._engine.intake
        facts: dict[str, int] = {}
        if source is None:
            stream = await self._engine.open_stream(**options)
        else:
            adapter = await choose_adapter(intake, options.get("lora_request"))
            saved = await asyncio.to_thread(intake.read_stream, source)
            facts = {"seed": saved.seed, "num_turns": saved.num_turns}
            stream = await self._engine.streams.add(
                lambda: intake.restore_stream(saved, adapter=adapter)
            )
        self._streams[name] = stream
        if token_ids:
            if is_continued:
                await self._engine.thread.call(stream.inner.reread)
            await stream.append(list(token_ids))
        if conversation is not None:
            stream.inner.conversation = conversation
        return await self._engine.thread.call(lambda: self._facts(stream, **facts))

    @staticmethod
    def _facts(stream: AsyncStream, **facts: int) -> StreamFacts:
        """For the engine's thread."""
        inner = stream.inner
        sequence = inner.core.peek(inner.seq_id)
        assert sequence is not None
        return StreamFacts(
            position=sequence.num_tokens,
            window_start=sequence.first_kept,
            sink_window=sequence.sink_window,
            conversation=inner.conversation,
            **facts,
        )

    async def encode_next(self, name: str, prompt: Prompt) -> list[int]:
        """Tokenize what is to be appended to a stream next. Changes nothing."""
        addition = await beside_the_loop(self._streams[name].inner.encode, prompt)
        return addition.token_ids

    async def append(
        self, name: str, prompt: Prompt, params: SamplingParams | None = None
    ) -> list[int]:
        """Append to a stream; returns the token ids, or what `break_off` has left of them.

        Args:
            params: of the turn that is to follow. If these are refused, nothing is appended.
        """
        task = self._appends[name] = asyncio.create_task(self._append(name, prompt, params))
        await asyncio.wait([task])
        if self._appends.get(name) is task:
            del self._appends[name]
        return [] if task.cancelled() else task.result()

    async def break_off(self, name: str) -> None:
        """Let an append end where it is, if there is one."""
        if (task := self._appends.get(name)) is not None:
            task.cancel()

    async def _append(self, name: str, prompt: Prompt, params: SamplingParams | None) -> list[int]:
        stream = self._streams[name]
        if params is not None:
            await check_beside_the_loop(self._engine.intake.prompts, params)
            check = partial(stream.inner.check_can_generate, params, appends=True)
            await self._engine.thread.call(check)
        token_ids = await self.encode_next(name, prompt)
        if params is not None:
            token_ids = self._engine.intake.prompts.truncate(token_ids, params)
        before = stream.position
        try:
            await stream.append(token_ids)
        except asyncio.CancelledError:
            return token_ids[: stream.position - before]
        return token_ids

    async def append_chat(
        self,
        name: str,
        messages: str | Messages,
        options: StreamChatOptions,
        params: SamplingParams,
        path: str,
    ) -> ChatFacts:
        """Append the next messages of a conversation; save the stream if something was cut out."""
        stream = self._streams[name]
        addition = await stream.encode_chat(messages, params, options)

        def append() -> ChatFacts:
            added = stream.inner.queue_chat(messages, params, addition, options)
            return ChatFacts(stream=self._facts(stream), **asdict(added))

        facts = await self._engine.thread.call(
            append, when=lambda: stream.inner.is_ready_for_chat(options)
        )
        if facts.has_cut:
            await self.save(name, path)
        return facts

    async def score_next(self, name: str, prompt: Prompt) -> tuple[list[int], list[float | None]]:
        """Append to a stream and score that; returns the token ids and their log-probabilities."""
        token_ids = await self.encode_next(name, prompt)
        return token_ids, await self._streams[name].score(token_ids)

    async def start_turn(
        self,
        name: str,
        params: SamplingParams,
        num_generated: int,
        generated: Sequence[int],
        template_rewrote: bool,
    ) -> None:
        await check_beside_the_loop(self._engine.intake.prompts, params)
        deltas = self._streams[name].resume(params, num_generated, generated, template_rewrote)
        self._turns[name] = DeltaBatches(deltas)
        await asyncio.sleep(0)  # lets the turn begin, so that it can be stopped

    async def take_turn(self, name: str) -> list[RequestDelta]:
        turn = self._turns.get(name)
        return [] if turn is None else await turn.take()

    async def stop_turn(self, name: str) -> list[RequestDelta]:
        """End a turn where it is; returns what was generated and not taken yet."""
        turn = self._turns.pop(name, None)
        if turn is None:
            return []
        await self._streams[name].end_turn()
        return await turn.take_rest()

    async def save(self, name: str, path: str) -> int:
        """Save a stream for the pool as it is now, also in a turn; returns its position."""
        saved = await self._streams[name].snapshot(in_turn=True)
        await asyncio.to_thread(write_stream_file, Path(path), saved)
        return saved.state.tail_start + len(saved.state.tail_ids)

    async def save_as(self, name: str, path: str, seed: int, num_turns: int) -> None:
        """Save a stream for users, who go on from the seed that the pool has for it."""
        saved = await self._streams[name].snapshot()
        saved = replace(saved, seed=seed, num_turns=num_turns)
        await asyncio.to_thread(write_stream_file, Path(path), saved)

    async def save_bytes(self, name: str, seed: int, num_turns: int) -> bytes:
        """Return what `save_as` would write."""
        saved = await self._streams[name].snapshot()
        saved = replace(saved, seed=seed, num_turns=num_turns)
        return await asyncio.to_thread(stream_bytes, saved)

    async def edit(self, name: str, method: str, args: Sequence[int], path: str) -> StreamFacts:
        """Edit a stream and save it."""
        stream = self._streams[name]
        await getattr(stream, method)(*args)
        return await self._save_edited(name, path)

    async def fork(self, name: str, child: str, path: str) -> StreamFacts:
        """Fork a stream and save the copy."""
        self._streams[child] = await self._streams[name].fork()
        try:
            return await self._save_edited(child, path)
        except BaseException:
            await self.close(child)
            raise

    async def _save_edited(self, name: str, path: str) -> StreamFacts:
        await self.save(name, path)
        stream = self._streams[name]
        return await self._engine.thread.call(lambda: self._facts(stream))

    async def park(self, name: str) -> None:
        await self._streams[name].park()

    async def stream_stats(self, name: str) -> StreamStats:
        return await self._streams[name].stats()

    async def stream_visible(self, name: str) -> VisibleText:
        return await self._streams[name].visible()

    async def close(self, name: str) -> None:
        """Close a stream, if it is there."""
        self._turns.pop(name, None)
        if (stream := self._streams.pop(name, None)) is not None:
            await stream.close()
