"""Deltas in batches: one call between processes takes everything that has come so far."""

from __future__ import annotations

import asyncio

from paged_stream.engine.api import AsyncDeltas
from paged_stream.engine.outputs import RequestDelta

_MAX_UNTAKEN = 64  # deltas


class DeltaBatches:
    """Reads the deltas of one request or turn as they come, for the pool to take them. If too many
    are not taken, it stops reading, and the engine waits."""

    def __init__(self, deltas: AsyncDeltas) -> None:
        self._deltas = deltas
        self._items: list[RequestDelta] = []
        self._error: BaseException | None = None
        self._has_ended = self._takes_all = False
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for delta in self._deltas:
                async with self._changed:
                    self._items.append(delta)
                    self._changed.notify_all()
                    await self._changed.wait_for(
                        lambda: self._takes_all or len(self._items) < _MAX_UNTAKEN
                    )
        except asyncio.CancelledError:
            pass  # `stop`
        except BaseException as error:
            self._error = error
        finally:
            await self._deltas.aclose()
            async with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    async def take(self) -> list[RequestDelta]:
        """Wait for deltas and return all that came since the last call; none after the last.

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
        """Return all that is still to come of a turn that was ended."""
        async with self._changed:
            self._takes_all = True
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._has_ended)
        items, self._items = self._items, []
        return items

    async def stop(self) -> None:
        """Read no more. What was read may still be taken."""
        self._task.cancel()
        await asyncio.wait([self._task])
        async with self._changed:
            self._has_ended = True  # also if it never began to read
            self._changed.notify_all()
