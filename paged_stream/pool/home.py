"""Where a stream of a pool lives: on one replica, until that dies or ends.

The stream is then restored on another replica from what the pool has acknowledged (`history`).
Anything that the lost replica did beyond that has not happened, and is done again. The same is done
when a call has no answer: nobody knows what the replica did, so it is undone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paged_stream.engine.lifetime import StreamLostError
from paged_stream.engine.stream_rules import closed_error
from paged_stream.pool.errors import PoolError
from paged_stream.pool.history import History, delete
from paged_stream.pool.messages import ChatFacts, StreamFacts
from paged_stream.pool.placement import Attempts, Placement
from paged_stream.pool.replica import NoAnswerError, Replica
from paged_stream.pool.saver import Saver
from paged_stream.pool.uninterrupted import uninterrupted
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.chat import Messages
from paged_stream.text.chat_options import StreamChatOptions

logger = logging.getLogger(__name__)
NO_ANSWER = object()


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
            except NoAnswerError as error:
                await self._undo_on(replica)
                attempts.failed(error)
            except BaseException:
                await self._undo_on(replica)
                raise

    async def _open_on(self, replica: Replica, source: str | bytes | None) -> None:
        history, own, key = self.history, None, self.history.new_key()
        facts = await replica.call("restore", key, history.options, source, [], None)
        if source is not None:  # which may be gone when the stream is to be restored
            history.seed, history.num_turns = facts.seed, facts.num_turns
            own, _ = await history.write_on(replica)
        self.begin(replica, facts, own)

    def begin(self, replica: Replica, facts: StreamFacts, path: Path | None) -> None:
        """Note that the stream exists on a replica, and perhaps in a file."""
        self.history.begin(facts, path)
        self.placement.open_streams.add(self)
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
        """Call a method of the stream's replica. If there is no answer, restore the stream on a
        replica as it was before, and call it there.

        Args:
            may_move: as in `attach`.

        Raises:
            ValueError: as the method, or the stream is closed.
            PoolError: no replica can do it.
        """
        attempts = Attempts(self.placement.replicas)
        while True:
            answer = await self.ask(await self.attach(may_move), attempts, method, *args)
            if answer is not NO_ANSWER:
                return answer

    async def ask(self, replica: Replica, attempts: Attempts, method: str, *args: Any) -> Any:
        """Call a method of the replica that the stream lives on.

        Returns:
            The answer, or `NO_ANSWER`. Then the stream is on no replica any more, which undoes
            whatever was done.

        Raises:
            ValueError: as the method, or the stream was closed meanwhile.
            PoolError: as `Attempts.failed`.
        """
        try:
            return await replica.call(method, self.history.key, *args)
        except NoAnswerError as error:
            if replica is self.replica:
                await uninterrupted(self.leave(saves=False))
            attempts.failed(error)
            return NO_ANSWER
        except StreamLostError:
            if replica is self.replica:
                await uninterrupted(self.leave_lost())
            return NO_ANSWER
        except ValueError:
            raise  # the replica has refused it, and changed nothing
        except Exception:
            if replica is self.replica:
                await uninterrupted(self.leave(saves=False))  # it may be half done
            self.check_open()  # a replica does not know a stream that was closed meanwhile
            raise

    async def _undo_on(self, replica: Replica) -> None:
        """Close the stream on a replica where it was to be opened or restored, if it is there."""
        if replica is not self.replica:
            replica.streams.discard(self)
            await self._close_on(replica)

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
            except NoAnswerError as error:
                await self._undo_on(replica)
                attempts.failed(error)
            except Exception as error:
                await self._undo_on(replica)
                self.check_open()  # if it was closed meanwhile, so were its files
                raise PoolError(f"{self.history.name} cannot be restored: {error}") from error
            except BaseException:
                await self._undo_on(replica)
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
                try:
                    await self._saver.save_locked()
                except Exception as error:  # then more is computed again
                    logger.warning("%s cannot be saved: %s", self.history.name, error)
            self._detach()
            if replica is not None:
                await self._close_on(replica)

    async def _close_on(self, replica: Replica) -> None:
        await uninterrupted(replica.clean_up("close", self.history.key))

    async def leave_lost(self) -> None:
        """Let go of a stream that its replica has lost; the history has what it was."""
        logger.warning("stream %s is lost where it lived, and is restored", self.history.name)
        await self.leave(saves=False)

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

    def note(self, token_ids: Sequence[int], *, generated: bool = False) -> None:
        """Acknowledge tokens, and save the stream from time to time."""
        self.history.note(token_ids, generated=generated)
        self._saver.save_if_due()

    async def edit(self, method: str, *args: int) -> None:
        """Edit the stream on its replica, and save the result.

        Raises:
            ValueError: as the method, or the stream was closed meanwhile.
        """
        path = self.history.next_path()
        with self.history.editing():
            try:
                facts = await self.call("edit", method, args, str(path))
                self.check_open()
            except BaseException:
                delete([path])
                raise
            self.history.note_edit(facts, path)

    async def append_chat(
        self, messages: str | Messages, options: StreamChatOptions, params: SamplingParams
    ) -> bool:
        """Append messages on the stream's replica, and save the result if it has cut something.

        Returns:
            Whether the template writes earlier messages otherwise than they were.

        Raises:
            ValueError: as `StreamApi.chat`, or the stream was closed meanwhile.
        """
        path = self.history.next_path()
        with self.history.editing():
            try:
                facts: ChatFacts = await self.call(
                    "append_chat", messages, options, params, str(path)
                )
                self.check_open()
            except BaseException:
                delete([path])
                raise
            if facts.has_cut:
                self.history.note_edit(facts.stream, path)
        if not facts.has_cut:
            self.history.conversation = facts.stream.conversation
            self.note(facts.token_ids)
        return facts.template_rewrote

    async def fork_into(self, child: Home) -> None:
        """Fork the stream on its replica.

        Raises:
            OSError: the copy cannot be saved.
            PoolError: no replica can do it.
        """
        attempts = Attempts(self.placement.replicas)
        facts: Any = NO_ANSWER
        while facts is NO_ANSWER:
            replica = await self.attach()
            key, path = child.history.new_key(), child.history.next_path()
            try:
                facts = await self.ask(replica, attempts, "fork", key, str(path))
            finally:
                if facts is NO_ANSWER:
                    await replica.clean_up("close", key)
                    delete([path])
        child.begin(replica, facts, path)

    async def save_now(self) -> None:
        """As `Saver.save`."""
        await self._saver.save()
