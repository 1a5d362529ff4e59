"""A live stream of a pool: the API on top of where it lives (`home`) and what it does (`turns`)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self, Unpack

from paged_stream.engine.api import AsyncDeltas, AsyncStreamApi, FilePath, OnEvict
from paged_stream.engine.lifetime import refuse_pickling, when_abandoned
from paged_stream.engine.outputs import StreamStats, VisibleText
from paged_stream.pool.history import History
from paged_stream.pool.home import Home
from paged_stream.pool.placement import Placement
from paged_stream.pool.run_soon import run_soon
from paged_stream.pool.turns import Turns
from paged_stream.pool.uninterrupted import uninterrupted
from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import StreamChatOptions, StreamChatSettings
from paged_stream.text.inputs import Prompt


class AsyncPoolStream(AsyncStreamApi):
    """A stream of an `AsyncRayLLM`, for the pool's event loop. `AsyncRayLLM.open_stream` makes it.

    Besides what the contract says, every method may raise `PoolError`: the pool is closed, or no
    replica can do what was asked for.

    Args:
        placement: of the pool.
        options: keyword arguments of `AsyncLLMEngine.open_stream`, for its replica.
        seeds: of the pool. The stream draws one, and its forks do.
        pool: is not collected before the stream.
        on_evict: called when tokens leave the window.
    """

    def __init__(
        self,
        placement: Placement,
        options: dict[str, Any],
        seeds: random.Random,
        pool: object,
        on_evict: OnEvict | None,
    ) -> None:
        name = placement.new_name("stream")
        self._home = Home(placement, History(name, placement.folder, options, on_evict))
        self._turns = Turns(self._home)
        self._seeds = seeds
        self._pool = pool
        release = partial(run_soon, asyncio.get_running_loop(), self._home.close)
        title = f"stream {name} of {placement.config.model!r}"
        self._finalizer = when_abandoned(self, title, placement.lifetime, release)

    async def open(self, source: str | bytes | None = None) -> None:
        """Open the stream on a replica. It is closed again if the waiting task is cancelled.

        Args:
            source: the path of a saved stream, or its content.

        Raises:
            ValueError: as `EngineApi.open_stream` and `EngineApi.load_stream`.
        """
        await self._make(self._home.open(source))
        if source is None:
            self._home.history.seed = self._seeds.getrandbits(63)

    async def _make(self, making: Coroutine[Any, Any, None]) -> None:
        try:
            await uninterrupted(making)
        except BaseException:  # nobody gets the stream
            await self.close()
            raise

    @property
    def position(self) -> int:
        """As `StreamApi.position`."""
        self._home.check_open()
        return self._home.history.journal.end

    @property
    def is_generating(self) -> bool:
        """As `StreamApi.is_generating`."""
        self._home.check_open()
        return self._turns.is_generating

    @property
    def replica(self) -> int | None:
        """Number of the replica that the stream lives on; ``None`` while it is on none."""
        return None if self._home.replica is None else self._home.replica.number

    # Turns

    async def append(self, prompt: Prompt) -> None:
        """As `AsyncStreamApi.append`."""
        await self._turns.append(prompt, waits=True)

    async def append_or_refuse(self, prompt: Prompt) -> None:
        """As `StreamApi.append`: raise ValueError rather than wait for the end of a turn."""
        await self._turns.append(prompt, waits=False)

    def generate(self, sampling_params: SamplingParams | None = None) -> AsyncDeltas:
        """As `StreamApi.generate`."""
        return self._turns.generate(sampling_params)

    def complete(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncDeltas:
        """As `StreamApi.complete`."""
        return self._turns.generate(sampling_params, prompt)

    def chat(
        self,
        messages: str | Messages,
        sampling_params: SamplingParams | None = None,
        **options: Unpack[StreamChatSettings],
    ) -> AsyncDeltas:
        """As `StreamApi.chat`."""
        return self._turns.generate(
            whole_answer(sampling_params), chat=(messages, StreamChatOptions(**options))
        )

    async def score(self, prompt: Prompt) -> list[float | None]:
        """As `StreamApi.score`. If it is cancelled, nothing is appended."""
        return await self._turns.score(prompt)

    async def end_turn(self) -> None:
        """As `StreamApi.end_turn`."""
        self._home.check_open()
        await self._turns.end_turn()

    # Editing, between turns

    async def fork(self, *, on_evict: OnEvict | None = None) -> AsyncPoolStream:
        """As `StreamApi.fork`."""
        async with self._turns.idle():
            home = self._home
            child = AsyncPoolStream(
                home.placement, home.history.options, self._seeds, self._pool, on_evict
            )
            await child._make(home.fork_into(child._home))
            child._home.history.seed = self._seeds.getrandbits(63)
            return child

    async def cut(self, start: int, end: int) -> None:
        """As `StreamApi.cut`."""
        await self._edit("cut", start, end)

    async def rewind(self, position: int) -> None:
        """As `StreamApi.rewind`."""
        await self._edit("rewind", position)

    async def _edit(self, method: str, *args: int) -> None:
        async with self._turns.idle():
            await uninterrupted(self._home.edit(method, *args))

    async def park(self) -> None:
        """As `StreamApi.park`."""
        async with self._turns.idle():
            await self._home.call("park")

    async def save(self, path: FilePath) -> None:
        """As `StreamApi.save`."""
        where, history = Path(path).expanduser().resolve(), self._home.history
        async with self._turns.idle():
            await self._home.call("save_as", str(where), history.seed, history.num_turns)

    async def save_bytes(self) -> bytes:
        """As `StreamApi.save_bytes`."""
        history = self._home.history
        async with self._turns.idle():
            content: bytes = await self._home.call("save_bytes", history.seed, history.num_turns)
            return content

    async def stats(self) -> StreamStats:
        """As `StreamApi.stats`."""
        stats: StreamStats = await self._home.call("stream_stats", may_move=False)
        pending = stats.num_pending_tokens + self._turns.num_queued
        return replace(stats, num_pending_tokens=pending)

    async def visible(self) -> VisibleText:
        """As `StreamApi.visible`."""
        visible: VisibleText = await self._home.call("stream_visible", may_move=False)
        return visible

    async def close(self) -> None:
        """As `StreamApi.close`."""
        self._finalizer.detach()
        if not (self._home.is_closed or self._home.placement.lifetime.is_over):
            await uninterrupted(self._home.close())
            await self._turns.notify()

    def check_open(self) -> None:
        """As `Home.check_open`."""
        self._home.check_open()

    async def __aenter__(self) -> Self:
        self.check_open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncPoolStream {self.summary}>"

    @property
    def summary(self) -> str:
        """The model, the position and the state in words, at any time and in any thread."""
        if not hasattr(self, "_finalizer"):
            return "that was not made"
        name = f"{self._home.history.name} of {self._home.placement.config.model!r}"
        if self._home.state != "open":
            return f"{name}: {self._home.state}"
        where = "on no replica" if self.replica is None else f"on replica {self.replica}"
        state = "generating" if self._turns.is_generating else "idle"
        return f"{name}: position {self._home.history.journal.end}, {where}, {state}"

    def __reduce__(self) -> NoReturn:
        refuse_pickling("a stream", "use save and load_stream, or fork")
