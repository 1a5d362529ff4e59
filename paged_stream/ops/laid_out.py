"""What an op has laid out for later calls, and holds for Python under a number."""

from __future__ import annotations

import weakref
from collections.abc import Callable


class LaidOut:
    """Keeps what stands behind a handle for as long as the object lives."""

    def __init__(self, handle: int, free: Callable[[int], None]) -> None:
        self.handle = handle
        finalizer = weakref.finalize(self, free, handle)
        finalizer.atexit = False  # somebody may compute until the very end
