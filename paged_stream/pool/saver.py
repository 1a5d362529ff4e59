"""Saving a stream from time to time, so that little is computed again if its replica dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from paged_stream.pool.history import History
from paged_stream.pool.replica import NoAnswerError, Replica

logger = logging.getLogger(__name__)


class Saver:
    """Saves one stream on its replica, once at a time.

    Attributes:
        lock: held while the stream is being saved. Nobody else may close it on its replica then.

    Args:
        history: of the stream.
        every_tokens: save when so many tokens came since the last attempt.
        where: gives the replica that the stream lives on, if there is one.
    """

    def __init__(
        self, history: History, every_tokens: int, where: Callable[[], Replica | None]
    ) -> None:
        self.lock = asyncio.Lock()
        self._history = history
        self._every_tokens = every_tokens
        self._where = where
        self._saving: asyncio.Task[None] | None = None

    def save_if_due(self) -> None:
        """Begin to save the stream if enough tokens came, and do not wait for it."""
        journal = self._history.journal
        is_due = journal.num_unsaved >= self._every_tokens
        if is_due and (self._saving is None or self._saving.done()):
            journal.num_unsaved = 0  # if the save fails, the next token does not try it again
            self._saving = asyncio.create_task(self._save_quietly())

    async def save(self) -> None:
        """Save the stream as it is now, also in a turn. On no replica it is saved already.

        Raises:
            NoAnswerError: as `History.save_on`.
            OSError: the file cannot be written.
        """
        async with self.lock:
            await self.save_locked()

    async def save_locked(self) -> None:
        """As `save`, for whoever holds the lock."""
        replica = self._where()
        if replica is not None and not replica.is_gone:
            await self._history.save_on(replica)

    async def _save_quietly(self) -> None:
        try:
            await self.save()
        except NoAnswerError:
            pass  # the next use of the stream will report it
        except Exception as error:
            logger.warning("stream %s cannot be saved: %s", self._history.name, error)
