"""Turns of a pool's stream, what queues behind them, and edits: one thing at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from paged_stream.engine import stream_rules
from paged_stream.engine.api import AsyncDeltas
from paged_stream.pool.errors import PoolError
from paged_stream.pool.home import Home
from paged_stream.pool.turn import PoolTurn
from paged_stream.pool.uninterrupted import uninterrupted
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import StreamChatOptions
from paged_stream.text.inputs import Prompt


class _Place:
    """The place of one turn or scoring in the queue for its stream."""

    def __init__(self, lock: asyncio.Lock) -> None:
        self._lock = lock
        self._is_held = False

    async def take(self) -> None:
        """Wait until nothing else is done with the stream. Harmless twice."""
        if not self._is_held:
            await self._lock.acquire()
            self._is_held = True

    def leave(self) -> None:
        """Let the next one in. Harmless twice, and before it was taken."""
        if self._is_held:
            self._is_held = False
            self._lock.release()


class Turns:
    """The turns of one stream, wherever it lives."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._turn: PoolTurn | None = None
        self._is_running = False  # whether what comes before the turn was appended
        self._is_scoring = False
        self._queued: list[int] = []
        self._lock = asyncio.Lock()
        self._place = _Place(self._lock)  # of the turn
        self._changed = asyncio.Condition()  # a turn or the stream has ended

    @property
    def is_generating(self) -> bool:
        """Whether a turn that generates has begun and not ended."""
        return self._turn is not None

    @property
    def num_queued(self) -> int:
        """Tokens that wait for the end of the turn."""
        return len(self._queued)

    @property
    def _is_busy(self) -> bool:
        return self.is_generating or self._is_scoring

    async def append(self, prompt: Prompt, *, waits: bool) -> None:
        """Append, or queue behind the turn if there is one.

        Args:
            waits: if too many tokens would queue, whether to wait for the end of the turn rather
                than to raise ValueError.

        Raises:
            ValueError: as `StreamApi.append`.
            PoolError: no replica can do it.
        """
        self._home.check_open()
        while self._is_busy:
            token_ids = await self._home.call("encode_next", prompt, may_move=False)
            if not self._is_busy:  # the turn has ended meanwhile
                break
            try:
                stream_rules.check_queue(len(self._queued), len(token_ids))
            except ValueError:
                if not waits:
                    raise
            else:
                self._queued += token_ids
                return
            async with self._changed:
                await self._changed.wait_for(lambda: self._home.is_closed or not self._is_busy)
        async with self._lock:
            appending = asyncio.ensure_future(self._append(prompt))
            try:
                await asyncio.shield(appending)
            except asyncio.CancelledError as error:
                await uninterrupted(self._break_off(appending))
                stream_rules.note_position(error, self._home.history.journal.end)
                raise

    async def _break_off(self, appending: asyncio.Future[None]) -> None:
        """Let an append end where it is, and wait for that."""
        if not appending.done() and (replica := self._home.replica) is not None:
            await replica.clean_up("break_off", self._home.history.key)
        await asyncio.wait([appending])
        self._home.history.note_withdrawal()
        appending.exception()  # nobody hears of it: whoever waited was cancelled

    async def _append(self, prompt: Prompt, *params: SamplingParams) -> None:
        self._home.note(await self._home.call("append", prompt, *params))

    async def generate(
        self,
        sampling_params: SamplingParams | None,
        prompt: Prompt | None = None,
        chat: tuple[str | Messages, StreamChatOptions] | None = None,
    ) -> AsyncDeltas:
        """Generate, and append something first if there is anything.

        Args:
            prompt: what to append.
            chat: messages to append, and how.

        Raises:
            ValueError: as `StreamApi.complete` and `StreamApi.chat`.
            PoolError: no replica can do it.
        """
        params = SamplingParams() if sampling_params is None else sampling_params
        turn = self._begin(params)
        try:
            await self._place.take()
            if prompt is not None:
                await uninterrupted(self._append(prompt, params))
            if chat is not None:
                appending = self._home.append_chat(*chat, params)
                turn.template_rewrote = await uninterrupted(appending)
            self._is_running = True
            while (delta := await turn.next()) is not None:
                yield delta
        finally:
            await uninterrupted(self._end(turn))

    def _begin(self, params: SamplingParams) -> PoolTurn:
        self._home.check_open()
        stream_rules.check_turn_params(params)
        if self._is_busy:
            raise stream_rules.generating_error()
        history = self._home.history
        if params.seed is None:
            params = replace(params, seed=stream_rules.turn_seed(history.seed, history.num_turns))
        self._turn, self._place = PoolTurn(self._home, params), _Place(self._lock)
        return self._turn

    async def end_turn(self) -> None:
        """As `StreamApi.end_turn`."""
        if (turn := self._turn) is None:
            return
        if self._is_running:
            await uninterrupted(self._end(turn))
        else:
            await turn.stop()  # what comes before it is still appended

    async def _end(self, turn: PoolTurn) -> None:
        """End a turn and append what queued behind it, unless that is done already."""
        if turn is not self._turn:
            return
        try:
            await turn.stop()
        finally:
            if turn is self._turn:
                self._turn, self._is_running = None, False
                await self._append_queued(self._place)

    async def _append_queued(self, place: _Place) -> None:
        """Append what queued behind a turn, also if the turn never began."""
        queued, self._queued = self._queued, []
        try:
            if queued:
                await place.take()
            if queued and not self._home.is_closed:
                await self._append(queued)
        except PoolError:
            self._home.note(queued)  # it was acknowledged, so it is appended on the next replica
            raise
        finally:
            place.leave()
            await self.notify()

    async def notify(self) -> None:
        """Wake whoever waits for the end of a turn."""
        async with self._changed:
            self._changed.notify_all()

    async def score(self, prompt: Prompt) -> list[float | None]:
        """As `StreamApi.score`. If it is cancelled, nothing is appended.

        Raises:
            PoolError: no replica can do it.
        """
        self._check_idle()
        self._is_scoring, place = True, _Place(self._lock)
        try:
            await place.take()
            try:
                token_ids, scores = await self._home.call("score_next", prompt)
            except asyncio.CancelledError:
                await uninterrupted(self._home.leave(saves=False))  # which ends the scoring
                raise
            self._home.note(token_ids)
        finally:
            self._is_scoring = False
            await uninterrupted(self._append_queued(place))
        result: list[float | None] = scores
        return result

    @asynccontextmanager
    async def idle(self) -> AsyncIterator[None]:
        """For what may not be done during a turn. Nothing else is done until the block ends.

        Raises:
            ValueError: there is a turn, or the stream is closed.
        """
        self._check_idle()
        async with self._lock:
            yield

    def _check_idle(self) -> None:
        self._home.check_open()
        if self._is_busy:
            raise stream_rules.generating_error()
