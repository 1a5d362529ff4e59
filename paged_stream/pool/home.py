"""Where a pool's stream lives: it stays with its worker, and is brought to another if that dies.

The pool knows every token that it has acknowledged, from the last save on (`journal`). What a
worker has done and not acknowledged has not happened: it is done again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paged_stream.pool.journal import Journal
from paged_stream.pool.replica_set import Member, PoolError, ReplicaLostError

if TYPE_CHECKING:
    from paged_stream.pool.async_ray_llm import AsyncRayLLM

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 4  # at one thing that every worker dies of


class Resident:
    """A stream without turns and edits, which come on top."""

    def __init__(self, pool: AsyncRayLLM, name: str, options: dict[str, Any]) -> None:
        self._pool = pool
        self._name = name
        self._options = options
        self._member: Member | None = None
        self._journal: Journal | None = None
        self._has_chatted = self._is_closed = False
        self._has_turn = False  # one that the worker knows of
        self._version = 0
        self._saving: asyncio.Task[None] | None = None
        self._attaching = asyncio.Lock()
        self._save_lock = asyncio.Lock()  # held while the worker must not close the stream, too

    @property
    def position(self) -> int:
        """Where the next token will stand."""
        assert self._journal is not None
        return self._journal.end

    @property
    def replica(self) -> int | None:
        """Number of the replica that it lives on, ``None`` while it is on none."""
        return None if self._member is None else self._member.number

    # Between workers

    async def open(self, path: str | None = None) -> None:
        """Open it on some replica, from a file if there is one."""
        attempts = 0
        while self._member is None:
            member = await self._pool.pick_for_stream(self)
            try:
                await self._open_on(member, path)
            except ReplicaLostError as error:
                attempts = self._lost(attempts, error)
            except BaseException:
                member.streams.discard(self)
                self._pool.forget(self)
                raise

    async def _open_on(self, member: Member, path: str | None) -> None:
        position, self._has_chatted = await member.call(
            "restore", self._name, self._options, path, [], False
        )
        own = None
        if path is not None:  # which may go away
            own = self.next_path()
            await member.call("save", self._name, str(own))
        self._journal = Journal(position, own)
        self._settle_on(member)

    async def _do(self, method: str, *args: Any, may_move: bool = True) -> Any:
        """Have the stream's worker do something, another one if it dies over it: it has not
        happened then."""
        attempts = 0
        while True:
            member = await self._attach(may_move)
            try:
                return await member.call(method, self._name, *args)
            except ReplicaLostError as error:
                attempts = self._lost(attempts, error)
            except ValueError:
                raise  # before anything was done
            except Exception:
                await self._leave(saves=False)  # who knows what was done
                raise

    def _lost(self, attempts: int, error: ReplicaLostError) -> int:
        """Count what a worker died of.

        Raises:
            PoolError: several have.
        """
        self._pool.report_lost(error.member, error)
        error.member.streams.discard(self)
        if error.member is self._member:
            self._turn_ended()
            self._detach()
        if attempts + 1 >= MAX_ATTEMPTS:
            raise PoolError(f"{attempts + 1} workers were lost over this: {error}") from error
        return attempts + 1

    async def _attach(self, may_move: bool = True) -> Member:
        """The replica that the stream lives on, after it has been brought to one if need be.

        Args:
            may_move: leave a worker that is about to end, if there is no turn.

        Raises:
            ValueError: the stream is closed, perhaps while it was brought to a replica.
        """
        async with self._attaching:
            self._check_open()
            member = self._member
            if member is not None and not member.is_gone:
                if not member.is_draining or not may_move or self._has_turn:
                    return member
                await self._leave()
            self._turn_ended()
            self._detach()
            attempts = 0
            while self._member is None:
                member = await self._pool.pick_for_stream(self)
                try:
                    await whole(self._restore(member))
                except ReplicaLostError as error:
                    attempts = self._lost(attempts, error)
                except Exception:
                    member.streams.discard(self)
                    self._check_open()  # then its file was deleted
                    raise
                finally:
                    if self._is_closed and self._member is not None:
                        await self._leave(saves=False)
                self._check_open()
            return self._member

    async def _restore(self, member: Member) -> None:
        journal = self._journal
        assert journal is not None
        path = None if journal.path is None else str(journal.path)
        args = (self._name, self._options, path, journal.tokens, self._has_chatted)
        position, _ = await member.call("restore", *args)
        assert position == journal.end, f"restored to {position}, not {journal.end}"
        self._pool.num_restored_streams += 1
        self._pool.num_replayed_tokens += len(journal.tokens)
        journal.num_unsaved = len(journal.tokens)
        self._settle_on(member)

    async def _leave(self, *, saves: bool = True) -> None:
        """Go from a worker that lives, to none."""
        async with self._save_lock:
            member = self._member
            try:
                if saves:
                    await self._save()
            except ReplicaLostError:
                pass  # then more is replayed
            self._turn_ended()
            self._detach()
            if member is not None and not member.is_gone:
                try:
                    await member.call("close", self._name)
                except ReplicaLostError:
                    pass

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the stream is closed")

    def _settle_on(self, member: Member | None) -> None:
        assert member is not None
        self._member = member
        member.streams.add(self)

    def _turn_ended(self) -> None:
        if self._has_turn and self._member is not None:
            self._member.load -= 1
        self._has_turn = False

    def _detach(self) -> None:
        if self._member is not None:
            self._member.streams.discard(self)
            self._member = None
        if self._journal is not None:
            delete(self._journal.forget_ahead())

    # Saving

    def _note(self, token_ids: Sequence[int]) -> None:
        """Acknowledge tokens, and save the stream from time to time."""
        assert self._journal is not None
        delete(self._journal.extend(token_ids))
        is_due = self._journal.num_unsaved >= self._pool.save_every_tokens
        if is_due and (self._saving is None or self._saving.done()):
            self._journal.num_unsaved = 0  # one that fails is not tried again at every token
            self._saving = asyncio.create_task(self._save_quietly())

    async def _save_quietly(self) -> None:
        try:
            await self.save_now()
        except ReplicaLostError:
            pass  # whoever uses the stream next will see to it
        except Exception as error:
            logger.warning("stream %s cannot be saved: %s", self._name, error)

    async def save_now(self) -> None:
        """Save the stream where it is, also in a turn."""
        async with self._save_lock:
            await self._save()

    async def _save(self) -> None:
        member, journal = self._member, self._journal
        if member is None or journal is None or member.is_gone:
            return
        path = self.next_path()
        try:
            position = await member.call("save", self._name, str(path))
        except BaseException:
            delete([path, *path.parent.glob(f".{path.name}.*")])
            raise
        is_current = member is self._member and journal is self._journal
        delete(journal.saved(position, path) if is_current else [path])

    def next_path(self) -> Path:
        self._version += 1
        return self._pool.folder / f"{self._name}-{self._version}.safetensors"


def delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


async def whole(coroutine: Coroutine[Any, Any, None]) -> None:
    """Do something to the end, also if who waits for it is cancelled: a worker that does it cannot
    be told, and the pool must know what it has done."""
    task, is_cancelled = asyncio.ensure_future(coroutine), False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            is_cancelled = True
        except Exception:
            break  # raised below
    task.result()
    if is_cancelled:
        raise asyncio.CancelledError
