"""Where a stream of a pool lives: on one replica, until that dies or ends.

The stream is then restored on another replica from what the pool has acknowledged (`history`).
Anything that the lost replica did beyond that has not happened, and is done again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paged_stream.engine.stream_rules import closed_error
from paged_stream.pool.history import History, delete
from paged_stream.pool.messages import StreamFacts
from paged_stream.pool.placement import Attempts, Placement
from paged_stream.pool.replica import Replica, ReplicaLostError
from paged_stream.pool.saver import Saver
from paged_stream.pool.uninterrupted import uninterrupted


class Home:
    """The place of one stream. Its turns and edits are built on top.

    Attributes:
        replica: where the stream lives; ``None`` while it is on no replica.
        has_turn: whether that replica is running a turn of it.
        is_closed: whether somebody has closed it.
    """

    def __init__(self, placement: Placement, history: History) -> None:
        self.placement = placement
        self.history = history
        self.replica: Replica | None = None
        self.has_turn = self.is_closed = False
        self._attaching = asyncio.Lock()
        self._saver = Saver(history, placement.save_every_tokens, lambda: self.replica)

    # Opening and closing

    async def open(self, source: str | bytes | None = None) -> None:
        """Open the stream on some replica, from a file or its content if there is one.

        Raises:
            ValueError: as `EngineApi.open_stream` and `EngineApi.load_stream`.
            PoolError: no replica can do it.
        """
        attempts = Attempts(self.placement.replicas)
        while self.replica is None:
            replica = await self.placement.replica_for_stream(self)
            try:
                await self._open_on(replica, source)
            except ReplicaLostError as error:
                self.lost(error, attempts)
            except BaseException:
                replica.streams.discard(self)
                raise

    async def _open_on(self, replica: Replica, source: str | bytes | None) -> None:
        history, own = self.history, None
        facts = await replica.call("restore", history.name, history.options, source, [], False)
        if source is not None:  # which may be gone when the stream is to be restored
            history.seed, history.num_turns = facts.seed, facts.num_turns
            own = history.next_path()
            await replica.call("save", history.name, str(own))
        self.begin(replica, facts, own)

    def begin(self, replica: Replica | None, facts: StreamFacts, path: Path | None) -> None:
        """Note that the stream exists: on a replica, in a file, or both."""
        self.history.begin(facts, path)
        self.placement.open_streams.add(self)
        if replica is not None:
            self._settle_on(replica)

    async def close(self) -> None:
        """Free the stream on its replica, and remove its files. Harmless twice, and after the
        pool was closed."""
        self.is_closed = True
        self.placement.open_streams.discard(self)
        await self.leave(saves=False)
        self.history.end()

    @property
    def state(self) -> str:
        """For a ``repr``."""
        return "closed" if self.is_closed else self.placement.lifetime.state

    def check_open(self) -> None:
        """Refuse to be used once the pool or the stream is closed.

        Raises:
            PoolError: the pool is closed.
            ValueError: the stream is.
        """
        self.placement.check()
        if self.is_closed:
            raise closed_error()

    # Between replicas

    async def call(self, method: str, *args: Any, may_move: bool = True) -> Any:
        """Call a method of the stream's replica. If the replica dies meanwhile, restore the stream
        on another one and call it there.

        Args:
            may_move: as in `attach`.

        Raises:
            ValueError: as the method, or the stream is closed.
            PoolError: no replica can do it.
        """
        attempts = Attempts(self.placement.replicas)
        while True:
            replica = await self.attach(may_move)
            try:
                return await replica.call(method, self.history.name, *args)
            except ReplicaLostError as error:
                self.lost(error, attempts)
            except ValueError:
                raise  # the replica has refused it, and changed nothing
            except Exception:
                await self.leave(saves=False)  # it may be half done, so it is undone
                raise

    def lost(self, error: ReplicaLostError, attempts: Attempts) -> None:
        """Report a replica that was lost. If the stream lived there, it is on no replica now.

        Raises:
            PoolError: as `Attempts.failed`.
        """
        error.replica.streams.discard(self)
        if error.replica is self.replica:
            self._detach()
        attempts.failed(error)

    async def attach(self, may_move: bool = True) -> Replica:
        """Return the replica that the stream lives on; restore it on one first if need be.

        Args:
            may_move: whether to leave a replica that is about to end, if there is no turn.

        Raises:
            ValueError: the stream is closed, perhaps while it was being restored.
            PoolError: it cannot be restored on any replica.
        """
        async with self._attaching:
            self.check_open()
            replica = self.replica
            if replica is not None and not replica.is_gone:
                if not replica.is_draining or not may_move or self.has_turn:
                    return replica
                await self.leave()
            self._detach()
            return await self._restore()

    async def _restore(self) -> Replica:
        attempts = Attempts(self.placement.replicas)
        while self.replica is None:
            replica = await self.placement.replica_for_stream(self)
            try:
                await uninterrupted(self._restore_on(replica))
            except ReplicaLostError as error:
                self.lost(error, attempts)
            except Exception:
                replica.streams.discard(self)
                self.check_open()  # if it was closed meanwhile, so were its files
                raise
            finally:
                if self.is_closed and self.replica is not None:
                    await self.leave(saves=False)
            self.check_open()
        return self.replica

    async def _restore_on(self, replica: Replica) -> None:
        await self.history.restore_on(replica)
        self.placement.num_restored_streams += 1
        self.placement.num_replayed_tokens += len(self.history.journal.tokens)
        self._settle_on(replica)

    async def leave(self, *, saves: bool = True) -> None:
        """Close the stream on its replica. It is on none afterwards, and restored when it is used.

        Args:
            saves: save it first, so that less is computed again.
        """
        async with self._saver.lock:
            replica = self.replica
            if saves:
                with contextlib.suppress(ReplicaLostError):
                    await self._saver.save_locked()
            self._detach()
            if replica is not None and not replica.is_gone:
                with contextlib.suppress(ReplicaLostError):
                    await replica.call("close", self.history.name)

    def _settle_on(self, replica: Replica) -> None:
        self.replica = replica
        replica.streams.add(self)

    def _detach(self) -> None:
        self.turn_ended()
        if self.replica is not None:
            self.replica.streams.discard(self)
            self.replica = None
        self.history.forget_ahead()

    # Turns

    def turn_began(self, replica: Replica) -> None:
        """Count a turn as load of the replica that was told to run it."""
        if self.replica is replica:  # otherwise it was closed or lost meanwhile
            replica.load += 1
            self.has_turn = True

    def turn_ended(self) -> None:
        """Note that the replica runs no turn of this stream any more."""
        if self.has_turn and self.replica is not None:
            self.replica.load -= 1
        self.has_turn = False

    # Saving

    def note(self, token_ids: Sequence[int]) -> None:
        """Acknowledge tokens, and save the stream from time to time."""
        self.history.note(token_ids)
        self._saver.save_if_due()

    async def edit(self, method: str, *args: int) -> None:
        """Edit the stream on its replica, and save the result.

        Raises:
            ValueError: as the method, or the stream was closed meanwhile.
        """
        path = self.history.next_path()
        facts = await self.call("edit", method, args, str(path))
        if self.is_closed:
            delete([path])
        self.check_open()
        self.history.note_edit(facts, path)

    async def save_now(self) -> None:
        """As `Saver.save`."""
        await self._saver.save()
