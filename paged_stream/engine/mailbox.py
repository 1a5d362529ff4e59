"""Where the engine's thread puts deltas, and a coroutine reads them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from paged_stream.engine.bell import Bell
from paged_stream.engine.outputs import RequestDelta


class Mailbox:
    """An inbox that a coroutine reads; the engine's thread fills it.

    ``release`` stops what fills it. The engine's thread is asked to call it if the reader's event
    loop is gone.

    Args:
        limit: deltas, from which on it is full.
        bell: wakes readers of this event loop.
        post: lets the engine's thread call something.
    """

    def __init__(self, limit: int, bell: Bell, post: Callable[[Callable[[], None]], None]) -> None:
        self.limit = limit
        self._bell = bell
        self._post = post
        self._items: deque[RequestDelta | RuntimeError | None] = deque()
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()  # set by the loop only
        self.num_unfinished = 1  # completions
        self.has_ended = False
        self.is_left = False  # by its reader
        self.release: Callable[[], None] = lambda: None

    @property
    def is_full(self) -> bool:
        return len(self._items) >= self.limit and self._bell.is_heard

    def append(self, delta: RequestDelta) -> None:
        self._items.append(delta)
        self.num_unfinished -= delta.finished
        if self.num_unfinished == 0:
            self.end()
        else:
            self._notify()

    def end(self, error: RuntimeError | None = None) -> None:
        """Tell the reader that nothing more will come, once it has read what there is."""
        if not self.has_ended:
            self.has_ended = True
            self._items.append(error)
            self._notify()

    def _notify(self) -> None:
        try:
            self._bell.ring(self._ready)
        except RuntimeError:  # the loop is closed, so nobody will read
            self._post(self.release)

    async def get(self) -> RequestDelta | None:
        """The next delta; ``None`` behind the last.

        Raises:
            EngineStoppedError: the engine is closed or has failed.
            StreamLostError: the stream is lost.
            RuntimeError: another event loop runs than when the iterator began.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this iterator began in another event loop; read it there")
        while not self._items:
            self._ready.clear()
            if not self._items:  # what comes from here on sets the event after this was said
                await self._ready.wait()
        item = self._items.popleft()
        # The engine passes a full box over until it hears that there is room. Looked at after the
        # removal: before it, the engine could fill the box in between and never hear.
        if len(self._items) == self.limit - 1:
            self._post(lambda: None)
        if isinstance(item, RuntimeError):
            raise item
        return item
