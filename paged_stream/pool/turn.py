"""One turn of a pool's stream. If its replica dies, another goes on where the reader is."""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from paged_stream.engine.outputs import RequestDelta, RequestMetrics
from paged_stream.pool.home import NO_ANSWER, Home
from paged_stream.pool.placement import Attempts
from paged_stream.pool.uninterrupted import uninterrupted
from paged_stream.scheduler.sampling_params import SamplingParams


class PoolTurn:
    """Fetches deltas from the stream's replica and acknowledges them.

    Args:
        home: of the stream.
        params: have the seed of this turn, so that another replica draws the same numbers.

    Attributes:
        template_rewrote: as in `RequestDelta`; to be set before the turn begins.
    """

    def __init__(self, home: Home, params: SamplingParams) -> None:
        self.template_rewrote = False
        self._home = home
        self._params = params
        self._attempts = Attempts(home.placement.replicas)
        self._items: deque[RequestDelta] = deque()
        self._num_generated = 0
        self._generated = array("i")  # with a structure, which has to see them all again
        self._metrics = RequestMetrics.of_arrival()
        self._has_begun = self._is_over = False
        self._lock = asyncio.Lock()  # held while it is being started or stopped
        self._taking: asyncio.Future[None] | None = None

    async def next(self) -> RequestDelta | None:
        """Wait for the next delta; ``None`` after the last.

        Raises:
            ValueError: the turn cannot begin.
            PoolError: no replica can go on with it.
        """
        while not self._items:
            if self._is_over or self._home.is_closed:
                async with self._lock:  # `stop` may be about to add some
                    return self._items.popleft() if self._items else None
            try:
                if not self._home.has_turn:
                    await uninterrupted(self._start())
                await self._take()
            except ValueError:
                self._home.turn_ended()
                if self._home.is_closed:
                    return None
                raise
        return self._items.popleft()

    async def stop(self) -> None:
        """End the turn where it is. What was generated is part of the stream, and `next` still
        returns it."""
        self._is_over = True
        async with self._lock:
            replica = self._home.replica
            if replica is None or not self._home.has_turn or self._home.is_closed:
                return
            rest = await self._home.ask(replica, self._attempts, "stop_turn")
            if self._taking is not None:
                await asyncio.wait([self._taking])  # what it got comes before the rest
            if rest is NO_ANSWER or not self._home.has_turn:
                return  # it was undone: what nobody has read is no part of the stream
            self._count()
            self._note(rest)
            self._home.turn_ended()

    async def _start(self) -> None:
        async with self._lock:
            if self._is_over:
                return
            replica = await self._home.attach()
            how = (self._params, self._num_generated, self._generated, self.template_rewrote)
            if await self._home.ask(replica, self._attempts, "start_turn", *how) is not NO_ANSWER:
                self._home.turn_began(replica)

    async def _take(self) -> None:
        """Wait for deltas. If the reader is cancelled meanwhile, `stop` takes care of them."""
        self._taking = asyncio.ensure_future(self._take_and_note())
        self._taking.add_done_callback(lambda taking: taking.cancelled() or taking.exception())
        await asyncio.shield(self._taking)
        self._taking = None

    async def _take_and_note(self) -> None:
        replica = await self._home.attach(may_move=False)
        if not self._home.has_turn:  # it was lost in this moment
            return
        deltas = await self._home.ask(replica, self._attempts, "take_turn")
        if deltas is NO_ANSWER:
            return
        self._attempts.succeeded()
        if not deltas:  # the replica has let go of the stream, or `stop` gets the rest
            if not self._is_over:
                self._home.turn_ended()
            return
        self._count()
        self._note(deltas)
        if deltas[-1].finished:
            self._is_over = True
            self._home.turn_ended()

    def _count(self) -> None:
        """Count the turn in the stream's history, once: the next one has another seed."""
        if not self._has_begun:
            self._has_begun = True
            self._home.history.num_turns += 1

    def _note(self, deltas: Sequence[RequestDelta]) -> None:
        """Acknowledge what was generated."""
        token_ids = [token_id for delta in deltas for token_id in delta.delta_token_ids]
        self._num_generated += len(token_ids)
        if self._params.structured_outputs is not None:
            self._generated.extend(token_ids)
        for delta in deltas:
            self._metrics = self._metrics.updated(delta.metrics)
            self._items.append(replace(delta, metrics=self._metrics))
        self._home.note(token_ids, generated=True)
