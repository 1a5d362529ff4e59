"""Telling the user which positions left a stream's window: each once, whatever replicas do."""

from __future__ import annotations

import logging
from collections.abc import Callable

from paged_stream.scheduler.sink_window import SinkWindow

logger = logging.getLogger(__name__)


class Evictions:
    """Follows from the number of acknowledged tokens alone. So nothing is told twice when a replica
    computes tokens again.

    Args:
        on_evict: called with the first position and the one behind the last.
        sink_window: the stream's sinks and window.
        window_start: first position behind the sinks that is still in the window.
    """

    def __init__(
        self, on_evict: Callable[[int, int], object], sink_window: SinkWindow, window_start: int
    ) -> None:
        self._on_evict = on_evict
        self._sink_window = sink_window
        self._window_start = max(window_start, sink_window.num_sink_tokens)

    def tell(self, num_tokens: int) -> None:
        """Tell what has left the window of a stream with so many tokens, of which all but the last
        are computed, or will be before anything else happens to it."""
        before, after = self._window_start, self._sink_window.first_kept(max(0, num_tokens - 1))
        if after <= before:
            return
        self._window_start = after
        try:
            self._on_evict(before, after)
        except BaseException:  # SystemExit, too, which would end the event loop for everybody
            logger.exception("on_evict failed")  # the tokens are in the stream, all the same

    def move_to(self, window_start: int) -> None:
        """Note where the window begins after an edit. What the edit removed was not evicted."""
        self._window_start = max(self._window_start, window_start)
