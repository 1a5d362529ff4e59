"""Which positions a query sees, and which blocks that takes: every formula, as pure functions.

The one rule: the query at absolute position ``p`` sees ``{j < S} | {j : p - W < j <= p}``, where
``S = num_sink_tokens`` and ``W = window_size``. It depends on ``p`` alone, so nothing here knows
about chunks, batches or steps. ``csrc/include/sink_window.h`` mirrors this file.

A layer may have a sliding window ``L`` of its own, `local_window`: of those keys its queries see
only the last ``L``, counted in a cache that holds nothing else. Then a window key is visible if
``p - L < j`` too, and a sink key if its distance from `sink_position` is below ``L``.

A span cut out of the window, or tokens taken back after others were evicted, leave a stream with
less than a whole window behind the sinks. Where its keys begin is one number, `window_floor`, and
queries see none between the sinks and that. Queries themselves stand at the floor or behind it.
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
        window_floor: ``F``, first position behind the sinks whose key there is: ``S`` or more, or
            0 when none is missing but those that the window has left behind.

    Raises:
        ValueError: ``num_sink_tokens`` is no int of at least 0, ``window_size`` of at least 1, or
            ``window_floor`` a position among the sinks, or not 0 with full attention.
    """

    num_sink_tokens: int
    window_size: int | None
    window_floor: int = 0

    def __post_init__(self) -> None:
        sinks, window, floor = self.num_sink_tokens, self.window_size, self.window_floor
        if type(sinks) is not int or sinks < 0:
            raise ValueError(f"num_sink_tokens must be an int >= 0, got {sinks!r}")
        if window is not None and (type(window) is not int or window < 1):
            raise ValueError(f"window_size must be an int >= 1 or None, got {window!r}")
        if type(floor) is not int or (floor != 0 and (window is None or floor < sinks)):
            least = "" if window is None else f" or an int >= num_sink_tokens={sinks}"
            raise ValueError(f"window_floor must be 0{least}, got {floor!r}")

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
        return max(self.window_floor, query_position - min(sizes) + 1) if sizes else 0

    def sink_start(self, query_position: int, local_window: int | None) -> int:
        """First sink that ``query_position`` sees; ``num_sink_tokens`` or more if it sees none."""
        if local_window is None:
            return 0
        return max(0, self.sink_position(query_position) - local_window + 1)

    def num_visible(self, query_position: int) -> int:
        return self.sink_position(query_position) + 1

    def sink_position(self, query_position: int) -> int:
        """Position the query takes towards sink keys: its place in a cache of what it sees."""
        if self.window_size is None:
            return query_position
        first = max(self.num_sink_tokens, self.window_start(query_position))
        return self.num_sink_tokens + query_position - first

    def first_kept(self, num_computed: int) -> int:
        """First position behind the sinks, among the first ``num_computed``, that later tokens
        can see; ``num_computed`` itself if there is none."""
        sinks = min(self.num_sink_tokens, num_computed)
        return max(sinks, self.window_start(num_computed))

    # Blocks

    def num_sink_blocks(self, block_size: int) -> int:
        """Blocks pinned for ever. The last of them may also hold window tokens."""
        if self.window_size is None:
            return 0
        return cdiv(self.num_sink_tokens, block_size)

    def num_pure_sink_blocks(self, block_size: int) -> int:
        """Those of them that hold nothing else, so that nobody ever writes them again."""
        return min(self.num_sink_blocks(block_size), self.num_sink_tokens // block_size)

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

    def max_decode_steps(self, num_computed: int, ring_blocks: int, block_size: int) -> int:
        """Most single tokens, from position ``num_computed`` on, that may be computed before
        anybody looks: any number of them, from the end, can still be taken back. At least 1.

        Whoever goes on from ``n`` without what was written at ``[n, n + excess)`` sees nothing
        older than ``n - W + 1``. The last of these overwrote ``n + excess - 1 - ring_blocks *
        block_size``, which is older as long as ``excess <= ring_blocks * block_size - W + 1``; that
        is ``block_size`` or more in the smallest ring. Nor does a block come round that has
        become full in these steps: it is still to be entered into the index.
        """
        assert self.window_size is not None, "full attention has no ring"
        ring = ring_blocks * block_size
        comes_round = (num_computed // block_size) * block_size + ring
        return min(ring - self.window_size + 1, comes_round - num_computed)

    def column(self, logical_block: int, ring_blocks: int, block_size: int) -> int:
        """Column of a block-table row that holds the stream's ``logical_block``-th block."""
        sinks = self.num_sink_blocks(block_size)
        if logical_block < sinks:
            return logical_block
        return sinks + (logical_block - sinks) % ring_blocks
