"""A live stream of a pool: turns and edits, on whichever worker it lives (`resident`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paged_stream.engine.outputs import RequestDelta, StreamStats
from paged_stream.engine.stream_rules import MAX_QUEUED_TOKENS
from paged_stream.pool.home import Resident, delete, whole
from paged_stream.pool.journal import Journal
from paged_stream.pool.replica_set import PoolError, ReplicaLostError
from paged_stream.scheduler.sampling_params import (
    SamplingParams,
    check_params_type,
    whole_answer,
)
from paged_stream.text.inputs import Prompt

if TYPE_CHECKING:
    from paged_stream.pool.async_ray_llm import AsyncRayLLM


class AsyncPoolStream(Resident):
    """Made by `AsyncRayLLM.open_stream`; its methods are those of `AsyncStream`, and `complete`."""

    def __init__(self, pool: AsyncRayLLM, name: str, options: dict[str, Any], seed: int) -> None:
        super().__init__(pool, name, options)
        self._seed = seed
        self._num_turns = 0
        self._queued: list[int] = []
        self._lock = asyncio.Lock()  # one thing at a time
        self._is_generating = False
        self._taking: asyncio.Future[list[RequestDelta]] | None = None

    @property
    def is_generating(self) -> bool:
        return self._is_generating

    # Turns

    async def append(self, prompt: Prompt) -> None:
        """Add text or token ids; while the stream generates, they queue behind the turn.

        Raises:
            ValueError: as `Stream.append`.
            PoolError: no worker can do it.
        """
        self._check_open()
        if self._is_generating:
            token_ids = await self._do("encode_next", prompt, may_move=False)
            if len(self._queued) + len(token_ids) > MAX_QUEUED_TOKENS:
                raise ValueError(
                    f"at most {MAX_QUEUED_TOKENS} tokens may queue while the stream is generating, "
                    f"{len(self._queued)} do, got {len(token_ids)} more; let it finish first"
                )
            if self._is_generating:
                self._queued += token_ids
                return
            prompt = token_ids  # the turn has ended meanwhile
        async with self._lock:
            await whole(self._append("append", prompt))

    async def _append(self, method: str, *args: Any) -> None:
        self._note(await self._do(method, *args))
        self._has_chatted |= method == "append_chat"

    def generate(self, params: SamplingParams | None = None) -> AsyncGenerator[RequestDelta, None]:
        """Generate until something stops it, yielding what was added. Closing the iterator ends
        the turn where it is.

        Raises:
            ValueError: as `Stream.generate`.
            PoolError: as `append`.
        """
        return self._generate(None, None, params)

    def complete(
        self, prompt: Prompt, params: SamplingParams | None = None
    ) -> AsyncGenerator[RequestDelta, None]:
        """Append a prompt and generate; neither, if the stream is generating already."""
        return self._generate("append", prompt, params)

    def chat(
        self, messages: str | Sequence[Any], params: SamplingParams | None = None
    ) -> AsyncGenerator[RequestDelta, None]:
        """Append the next messages of a conversation and generate the answer, as `Stream.chat`."""
        return self._generate("append_chat", messages, whole_answer(params))

    async def _generate(
        self, method: str | None, addition: Any, params: SamplingParams | None
    ) -> AsyncGenerator[RequestDelta, None]:
        params = self._begin_turn(params)
        try:
            await whole(self._take_lock())
            if method is not None:
                await whole(self._append(method, addition, params))
            async with aclosing(self._turn(params)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:  # what queued behind the turn comes next, also if the turn never began
            self._is_generating = False
            queued, self._queued = self._queued, []
            try:
                if queued and not self._is_closed:
                    await whole(self._append("append", queued))
            except PoolError:
                self._note(queued)  # it was acknowledged, so whoever has the stream next gets it
                raise
            finally:
                self._lock.release()

    async def _take_lock(self) -> None:
        await self._lock.acquire()

    def _begin_turn(self, params: SamplingParams | None) -> SamplingParams:
        self._check_open()
        params = SamplingParams() if params is None else params
        check_params_type(params)
        if params.n != 1:
            raise ValueError(f"n must be 1 for a stream, got {params.n}; fork it")
        if self._is_generating:
            raise ValueError("the stream is generating already")
        self._is_generating = True
        self._num_turns += 1
        # A turn that another worker goes on with must draw the same numbers.
        seed = hash((self._seed, self._num_turns)) & (2**63 - 1)
        return params if params.seed is not None else replace(params, seed=seed)

    async def _turn(self, params: SamplingParams) -> AsyncGenerator[RequestDelta, None]:
        num_generated, attempts, is_over = 0, 0, False
        try:
            while not is_over and not self._is_closed:
                try:
                    if not self._has_turn:
                        await whole(self._start_turn(params, num_generated))
                    deltas = await self._take()
                except ReplicaLostError as error:
                    attempts = self._lost(attempts, error)
                    continue
                except ValueError:
                    self._turn_ended()
                    if self._is_closed:
                        return
                    raise
                attempts = 0
                if not deltas:  # the worker has let go of the stream
                    self._turn_ended()
                    continue
                is_over = deltas[-1].finished
                num_generated += sum(len(delta.delta_token_ids) for delta in deltas)
                if is_over:
                    self._turn_ended()
                for delta in deltas:
                    yield delta
        finally:
            if self._has_turn and not self._is_closed:
                await whole(self._stop())

    async def _start_turn(self, params: SamplingParams, num_generated: int) -> None:
        self._taking = None
        member = await self._attach()
        await member.call("start_turn", self._name, params, num_generated)
        if self._member is member:  # and the stream was not closed meanwhile
            member.load += 1
            self._has_turn = True

    async def _take(self) -> list[RequestDelta]:
        """What was generated; it is acknowledged now. If whoever waits is cancelled, what the
        worker gave nevertheless is left to `_stop`."""
        member = await self._attach(may_move=False)
        if not self._has_turn:
            return []
        self._taking = asyncio.ensure_future(member.call("take_turn", self._name))
        deltas = await asyncio.shield(self._taking)
        self._taking = None  # otherwise it is for `_stop`
        self._note_deltas(deltas)
        return deltas

    async def _stop(self) -> None:
        """End a turn whose reader left. What was generated unread stays in the stream."""
        member = self._member
        assert member is not None
        try:
            rest = await member.call("stop_turn", self._name)
            if self._taking is not None:
                self._note_deltas(await self._taking)
            self._note_deltas(rest)
            self._turn_ended()
        except ReplicaLostError as error:
            self._lost(0, error)  # and with it what nobody has seen

    def _note_deltas(self, deltas: Sequence[RequestDelta]) -> None:
        self._note([token_id for delta in deltas for token_id in delta.delta_token_ids])

    # Editing, between turns

    async def fork(self) -> AsyncPoolStream:
        """As `Stream.fork`."""
        async with self._idle():
            child = self._pool.new_stream(self._options)
            try:
                await whole(self._fork(child))
            except BaseException:  # nobody has it
                await child.close()
                raise
            return child

    async def _fork(self, child: AsyncPoolStream) -> None:
        path = child.next_path()
        position, child._has_chatted = await self._do("fork", child._name, str(path))
        child._journal = Journal(position, path)
        child._settle_on(self._member)

    async def cut(self, start: int, end: int) -> None:
        """As `Stream.cut`."""
        async with self._idle():
            await whole(self._edit("cut", start, end))

    async def rewind(self, position: int) -> None:
        """As `Stream.rewind`."""
        async with self._idle():
            await whole(self._edit("rewind", position))

    async def _edit(self, method: str, *args: int) -> None:
        old, path = self._journal, self.next_path()
        position, self._has_chatted = await self._do("edit", method, args, str(path))
        if self._is_closed:
            delete([path])
            self._check_open()
        # Saves that are under way are of what was before, and go to the old journal.
        self._journal = Journal(position, path)
        assert old is not None
        delete([*old.forget_ahead(), *([] if old.path is None else [old.path])])

    async def save(self, path: str | Path) -> None:
        """As `Stream.save`; the path must mean the same on every machine of the cluster."""
        async with self._idle():
            await self._do("save_as", str(path))

    async def park(self) -> None:
        """As `Stream.park`."""
        async with self._idle():
            await self._do("park")

    async def stats(self) -> StreamStats:
        """As `Stream.stats`."""
        self._check_open()
        stats: StreamStats = await self._do("stream_stats", may_move=False)
        return stats

    async def close(self) -> None:
        """Free the stream, and end its turn. Closing twice is harmless."""
        if self._is_closed:
            return
        self._is_closed = True
        self._pool.forget(self)
        await whole(self._close())

    async def _close(self) -> None:
        await self._leave(saves=False)
        if self._journal is not None and self._journal.path is not None:
            delete([self._journal.path])

    async def __aenter__(self) -> AsyncPoolStream:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def _idle(self) -> asyncio.Lock:
        """The lock, for what may not be done in a turn."""
        self._check_open()
        if self._is_generating:
            raise ValueError("the stream is generating; let it finish first")
        return self._lock
