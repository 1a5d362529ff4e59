"""Which positions a query sees, and which blocks that takes: every formula, as pure functions.

The one rule: the query at absolute position ``p`` sees ``{j < S} | {j : p - W < j <= p}``, where
``S = num_sink_tokens`` and ``W = window_size``. It depends on ``p`` alone, so nothing here knows
about chunks, batches or steps. ``csrc/include/sink_window.h`` mirrors this file.

A layer may have a sliding window ``L`` of its own, `local_window`: of those keys its queries see
only the last ``L``, counted in a cache that holds nothing else. Then a window key is visible if
``p - L < j`` too, and a sink key if its distance from `sink_position` is below ``L``.
"""

from __future__ import annotations

from dataclasses import dataclass


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class SinkWindow:
    """The attention pattern of one sequence.

    Args:
        num_sink_tokens: ``S``, tokens at the start of the stream that stay visible for ever.
        window_size: ``W``, most recent tokens that are visible, the query's own included.
            ``None`` is full attention: nothing is ever evicted and ``S`` has no effect.

    Raises:
        ValueError: ``num_sink_tokens`` is no int of at least 0, or ``window_size`` of at least 1.
    """

    num_sink_tokens: int
    window_size: int | None

    def __post_init__(self) -> None:
        sinks, window = self.num_sink_tokens, self.window_size
        if type(sinks) is not int or sinks < 0:
            raise ValueError(f"num_sink_tokens must be an int >= 0, got {sinks!r}")
        if window is not None and (type(window) is not int or window < 1):
            raise ValueError(f"window_size must be an int >= 1 or None, got {window!r}")

    # Visibility

    def is_visible(
        self, key_position: int, query_position: int, local_window: int | None = None
    ) -> bool:
        if key_position > query_position:
            return False
        if key_position < self.num_sink_tokens:
            return key_position >= self.sink_start(query_position, local_window)
        return key_position >= self.window_start(query_position, local_window)

    def window_start(self, query_position: int, local_window: int | None = None) -> int:
        """First position inside the window of ``query_position`` (it may lie among the sinks)."""
        sizes = [size for size in (self.window_size, local_window) if size is not None]
        return max(0, query_position - min(sizes) + 1) if sizes else 0

    def sink_start(self, query_position: int, local_window: int | None) -> int:
        """First sink that ``query_position`` sees; ``num_sink_tokens`` or more if it sees none."""
        if local_window is None:
            return 0
        return max(0, self.sink_position(query_position) - local_window + 1)

    def num_visible(self, query_position: int) -> int:
        if self.window_size is None:
            return query_position + 1
        return min(query_position + 1, self.num_sink_tokens + self.window_size)

    def sink_position(self, query_position: int) -> int:
        """Position the query takes towards sink keys: its place in a cache of ``S + W`` tokens."""
        if self.window_size is None:
            return query_position
        return min(query_position, self.num_sink_tokens + self.window_size - 1)

    # Blocks

    def num_sink_blocks(self, block_size: int) -> int:
        """Blocks pinned for ever. The last of them may also hold window tokens."""
        if self.window_size is None:
            return 0
        return cdiv(self.num_sink_tokens, block_size)

    def ring_blocks(self, chunk: int, block_size: int) -> int:
        """Ring columns needed so that a chunk of ``chunk`` tokens can be written before it is read.

        The chunk's queries together see ``W - 1 + chunk`` consecutive positions; a run of ``n``
        positions touches at most ``cdiv(n - 1, block_size) + 1`` blocks.
        """
        assert self.window_size is not None, "full attention has no ring"
        assert chunk >= 1, chunk
        return cdiv(self.window_size - 2 + chunk, block_size) + 1

    def max_chunk(self, ring_blocks: int, block_size: int) -> int:
        """Largest chunk that ``ring_blocks`` columns can take: the inverse of `ring_blocks`."""
        assert self.window_size is not None, "full attention has no ring"
        return (ring_blocks - 1) * block_size - self.window_size + 2

    def column(self, logical_block: int, ring_blocks: int, block_size: int) -> int:
        """Column of a block-table row that holds the stream's ``logical_block``-th block."""
        sinks = self.num_sink_blocks(block_size)
        if logical_block < sinks:
            return logical_block
        return sinks + (logical_block - sinks) % ring_blocks
