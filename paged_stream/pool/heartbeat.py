"""Whether a replica that did not die still answers: what tells a busy one from a lost one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from paged_stream.pool.replica import NoAnswerError, Replica, ReplicaLostError

_MAX_BEAT_SECONDS = 1.0
# A pool whose event loop was blocked leaves one answer unread, which is no fault of the replica.
_MAX_UNANSWERED = 3


async def listen(replica: Replica, seconds: float, heard_again: Callable[[], object]) -> None:
    """Ask a replica for one heartbeat after the other, as long as it answers.

    Args:
        seconds: how long it may leave all questions unanswered.
        heard_again: called when it answers for the first time since it was silent.

    Raises:
        ReplicaLostError: it has died, or did not answer for so long.
    """
    limit = seconds / _MAX_UNANSWERED
    unanswered = 0
    while unanswered < _MAX_UNANSWERED:
        deadline = time.monotonic() + limit
        beat = replica.call("beat", min(limit / 2, _MAX_BEAT_SECONDS))
        try:
            await asyncio.wait_for(beat, limit)
        except ReplicaLostError:
            raise
        except (TimeoutError, NoAnswerError):
            unanswered += 1
            await asyncio.sleep(max(0.0, deadline - time.monotonic()))
        else:
            unanswered = 0
            if replica.is_silent:
                replica.is_silent = False
                heard_again()
    raise ReplicaLostError(replica, f"no heartbeat for {seconds:g} s")
