"""The error of a pool that cannot go on."""

from __future__ import annotations

from paged_stream.engine.lifetime import EngineStoppedError


class PoolError(EngineStoppedError):
    """The pool is closed, or it cannot do what it was asked for any more; says why."""
