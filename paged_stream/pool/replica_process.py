"""One engine of a pool, in a process of its own. Its methods are coroutines of one event loop.

Deltas are fetched in batches: `take` waits until there are some and gives all there are.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paged_stream.config import EngineConfig
from paged_stream.engine.api import AsyncDeltas
from paged_stream.engine.async_engine import AsyncLLMEngine
from paged_stream.engine.async_stream import AsyncStream, beside_the_loop
from paged_stream.engine.outputs import EngineStats, RequestDelta, StreamStats
from paged_stream.engine.stream_file import write_stream_file
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.inputs import Prompt, naming_item

_MAX_UNTAKEN = 64  # deltas of one turn, after which its engine waits


class Reader:
    """Reads the deltas of one turn as they come, for somebody to take them."""

    def __init__(self, deltas: AsyncDeltas) -> None:
        self._deltas = deltas
        self._items: list[RequestDelta] = []
        self._error: BaseException | None = None
        self._has_ended = self._takes_all = False
        self._changed = asyncio.Condition()
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for delta in self._deltas:
                async with self._changed:
                    self._items.append(delta)
                    self._changed.notify_all()
                    await self._changed.wait_for(
                        lambda: self._takes_all or len(self._items) < _MAX_UNTAKEN
                    )
        except BaseException as error:
            self._error = error
        finally:
            await self._deltas.aclose()
            async with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    async def take(self) -> list[RequestDelta]:
        """What came since the last call, at least one; nothing once all was taken.

        Raises:
            ValueError: the turn could not begin.
            EngineStoppedError: the engine has failed.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._items or self._has_ended)
            items, self._items = self._items, []
            self._changed.notify_all()
        if not items and self._error is not None:
            raise self._error
        return items

    async def take_rest(self) -> list[RequestDelta]:
        """All that is still to come of a turn that was ended."""
        async with self._changed:
            self._takes_all = True
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._has_ended)
        items, self._items = self._items, []
        return items


class Replica:
    """An `AsyncLLMEngine` with its requests and streams by the names that the pool gives them."""

    def __init__(self) -> None:
        self._engine: AsyncLLMEngine
        self._is_loaded = False
        self._requests: dict[str, Reader] = {}
        self._turns: dict[str, Reader] = {}
        self._streams: dict[str, AsyncStream] = {}

    async def load(self, config: EngineConfig) -> int:
        """Load the model; returns the process's id."""
        self._engine = await asyncio.to_thread(AsyncLLMEngine, config)
        self._is_loaded = True
        return os.getpid()

    async def live(self) -> None:
        """Never return: who waits for it hears of the end of the process, or of the engine."""
        while True:
            await self._engine.stats()
            await asyncio.sleep(1.0)

    async def stats(self) -> EngineStats:
        return await self._engine.stats()

    async def close_engine(self) -> None:
        """End the engine, and processes that it has; a model that is being loaded is not waited
        for."""
        if self._is_loaded:
            await self._engine.shutdown()

    async def encode(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams]
    ) -> list[list[int]]:
        """Token ids of prompts, which are checked together with their parameters."""
        for each in params:
            self._engine.intake.prompts.check_params(each)
        token_ids = []
        for index, prompt in enumerate(prompts):
            with naming_item("prompts", index, len(prompts)):
                token_ids.append(await beside_the_loop(self._engine.encode, prompt))
        return token_ids

    async def render_chat(self, conversations: Sequence[Any]) -> list[list[int]]:
        """Token ids of conversations in the chat template."""
        intake = self._engine.intake
        prompts = []
        for index, messages in enumerate(conversations):
            with naming_item("messages", index, len(conversations)):
                prompts.append(await asyncio.to_thread(intake.encode_chat, messages))
        return prompts

    # Requests

    async def score(self, prompt: Prompt) -> list[float | None]:
        return await self._engine.score(prompt)

    async def start_request(
        self, name: str, prompt: Prompt, params: SamplingParams, priority: int
    ) -> None:
        deltas = self._engine.generate(prompt, params, request_id=name, priority=priority)
        self._requests[name] = Reader(deltas)

    async def take_request(self, name: str) -> list[RequestDelta]:
        return await self._requests[name].take()

    async def stop_request(self, name: str) -> None:
        """Forget a request, finished or not."""
        if (reader := self._requests.pop(name, None)) is not None:
            reader.task.cancel()

    # Streams

    async def restore(
        self,
        name: str,
        options: dict[str, Any],
        path: str | None,
        token_ids: Sequence[int],
        has_chatted: bool,
    ) -> tuple[int, bool]:
        """Open a stream, from a file if there is one, and bring it to where it was.

        Returns:
            Its position, and whether it has chatted.
        """
        if name in self._streams:  # of an attempt that was given up
            await self.close(name)
        if path is None:
            stream = await self._engine.open_stream(**options)
        else:
            intake = self._engine.intake
            saved = await asyncio.to_thread(intake.read_stream, path)
            saved = replace(saved, has_chatted=saved.has_chatted or has_chatted)
            stream = await self._engine.streams.add(lambda: intake.restore_stream(saved))
        self._streams[name] = stream
        if token_ids:
            await stream.append(list(token_ids))
        return await self._engine.thread.call(lambda: self._revive(stream, has_chatted))

    @staticmethod
    def _revive(stream: AsyncStream, has_chatted: bool) -> tuple[int, bool]:
        stream.inner.has_chatted = stream.inner.has_chatted or has_chatted
        return stream.inner.position, stream.inner.has_chatted

    async def encode_next(self, name: str, prompt: Prompt) -> list[int]:
        """Token ids of what may be appended to a stream; changes nothing."""
        addition = await beside_the_loop(self._streams[name].inner.encode, prompt)
        return addition.token_ids

    async def append(
        self, name: str, prompt: Prompt, params: SamplingParams | None = None
    ) -> list[int]:
        """Append to a stream, unless a turn with ``params`` is to follow that cannot; returns the
        token ids."""
        if params is not None:
            self._engine.intake.prompts.check_params(params)
        token_ids = await self.encode_next(name, prompt)
        await self._streams[name].append(token_ids)
        return token_ids

    async def append_chat(self, name: str, messages: Any, params: SamplingParams) -> list[int]:
        """Append the next messages of a conversation; returns the token ids."""
        stream = self._streams[name].inner
        addition = await asyncio.to_thread(stream.encode_chat, messages)
        return await self._engine.thread.call(lambda: stream.queue_chat(messages, params, addition))

    async def start_turn(self, name: str, params: SamplingParams, num_generated: int) -> None:
        deltas = self._streams[name].resume(params, num_generated)
        self._turns[name] = Reader(deltas)
        await asyncio.sleep(0)  # the turn is asked for from here on, so that it can be stopped

    async def take_turn(self, name: str) -> list[RequestDelta]:
        return await self._turns[name].take()

    async def stop_turn(self, name: str) -> list[RequestDelta]:
        """End a turn where it is; returns what was generated and not taken."""
        turn = self._turns.pop(name, None)
        if turn is None:
            return []
        await self._streams[name].end_turn()
        return await turn.take_rest()

    async def save(self, name: str, path: str) -> int:
        """Save a stream as it is, also in a turn; returns its position."""
        saved = await self._streams[name].snapshot(in_turn=True)
        await asyncio.to_thread(write_stream_file, Path(path), saved)
        return saved.state.tail_start + len(saved.state.tail_ids)

    async def edit(
        self, name: str, method: str, args: Sequence[Any], path: str
    ) -> tuple[int, bool]:
        """Edit a stream and save it; returns what `restore` does."""
        stream = self._streams[name]
        await getattr(stream, method)(*args)
        return await self.save(name, path), stream.inner.has_chatted

    async def fork(self, name: str, child: str, path: str) -> tuple[int, bool]:
        """Fork a stream and save the copy; returns what `restore` does."""
        stream = self._streams[child] = await self._streams[name].fork()
        try:
            return await self.save(child, path), stream.inner.has_chatted
        except BaseException:
            await self.close(child)
            raise

    async def save_as(self, name: str, path: str) -> None:
        await self._streams[name].save(path)

    async def park(self, name: str) -> None:
        await self._streams[name].park()

    async def stream_stats(self, name: str) -> StreamStats:
        return await self._streams[name].stats()

    async def close(self, name: str) -> None:
        self._turns.pop(name, None)
        await self._streams.pop(name).close()
