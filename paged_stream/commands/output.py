"""Writing what a stream generates, as it comes, and what it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from paged_stream.system.progress_bar import LINE_SECONDS

if TYPE_CHECKING:
    from paged_stream.engine.outputs import RequestDelta
    from paged_stream.engine.stream import Stream


def show(stream: Stream, deltas: Iterable[RequestDelta]) -> bool:
    """Print an answer token by token, and a summary at its end on standard error.

    Returns:
        Whether it ended by itself, rather than by Ctrl-C.
    """
    meter = Meter(stream)
    ended = False
    try:
        for delta in deltas:
            meter.count(delta)
            sys.stdout.write(delta.delta_text)
            sys.stdout.flush()
            if not sys.stdout.isatty() and meter.age > LINE_SECONDS:
                print("\n" + meter.summary(), file=sys.stderr)
        ended = True
    except KeyboardInterrupt:
        pass
    print(flush=True)
    print(meter.summary(), file=sys.stderr)
    return ended


class Meter:
    """Counts the tokens of one turn and describes its stream."""

    def __init__(self, stream: Stream) -> None:
        self._last_summary = time.perf_counter()
        self._stream = stream
        self._num_tokens = 0
        self._started = 0.0

    @property
    def age(self) -> float:
        """Seconds since the last summary."""
        return time.perf_counter() - self._last_summary

    def count(self, delta: RequestDelta) -> None:
        if not delta.delta_token_ids:
            return
        if not self._num_tokens:
            self._started = time.perf_counter()  # the time before is the prompt's
        self._num_tokens += len(delta.delta_token_ids)

    def summary(self) -> str:
        self._last_summary = time.perf_counter()
        elapsed = self._last_summary - self._started
        speed = (self._num_tokens - 1) / elapsed if self._num_tokens > 1 else 0.0
        stats = self._stream.stats()
        return (
            f"[{self._num_tokens:,} tokens, {speed:.1f} tok/s | KV {stats.kv_bytes / 2**20:.2f} "
            f"MiB in {stats.num_blocks} blocks | stream {stats.num_tokens:,}: "
            f"{stats.num_visible_tokens:,} visible, {stats.num_evicted_tokens:,} evicted]"
        )
