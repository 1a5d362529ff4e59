"""One sequence's row of the block table: how wide it is, and which block holds which tokens."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from .sink_window import SinkWindow, cdiv


def row_shape(
    sink_window: SinkWindow,
    max_blocks: int | None,
    chunk: int,
    num_computed: int,
    block_size: int,
    min_chunk: int = 1,
) -> tuple[int, int]:
    """Sink and ring columns for a step of ``chunk`` tokens, and for ``min_chunk`` ones later.

    Args:
        max_blocks: blocks that the sequence can ever touch; ``None`` is endless.
        num_computed: tokens before the chunk.
    """
    if sink_window.window_size is None:
        assert max_blocks is not None, "full attention needs a bound"
        return 0, max_blocks
    sinks = sink_window.num_sink_blocks(block_size)
    smallest = sink_window.ring_blocks(min_chunk, block_size)
    ring = sink_window.ring_blocks(chunk, block_size)
    # What does not reach beyond the row needs no room to come round.
    reached = cdiv(num_computed + chunk, block_size)
    ring = max(smallest, min(ring, reached - sinks))
    if max_blocks is not None:
        # At least one ring column keeps the modulus of a row that is all sinks defined.
        sinks, ring = min(sinks, max_blocks), min(ring, max(1, max_blocks - sinks))
    return sinks, ring


@dataclass(slots=True, kw_only=True)
class BlockTable:
    """One sequence's row and its bound.

    ``row`` has the pinned sink columns first, then ``ring_blocks`` columns that logical blocks
    take in turn; -1 is a column without a block. A row that was handed out never changes: `put`
    goes on with a copy, so that steps which change nothing copy nothing. The first
    ``num_pure_sink_blocks`` hold nothing but sinks and are never overwritten. ``max_blocks`` is the
    number of blocks the sequence can ever touch, or ``None`` for an endless one. The first
    ``num_hashed_blocks`` logical blocks are in the chain that ends with ``last_hash``; ``None``
    once the content is no longer what the tokens alone say.
    """

    sink_window: SinkWindow
    num_sink_blocks: int
    num_pure_sink_blocks: int
    ring_blocks: int
    max_blocks: int | None
    row: array[int]
    is_handed_out: bool = False
    num_logical_blocks: int = 0
    num_hashed_blocks: int | None = 0
    last_hash: bytes = b""

    def hand_out(self) -> array[int]:
        """The row as it is now, which stays as it is."""
        self.is_handed_out = True
        return self.row

    def put(self, column: int, block_id: int) -> None:
        """Set a column; -1 takes its block away."""
        if self.is_handed_out:
            self.row, self.is_handed_out = self.row[:], False
        self.row[column] = block_id

    def resize(self, ring: array[int]) -> None:
        """Give the row another ring."""
        self.row, self.is_handed_out = self.row[: self.num_sink_blocks] + ring, False
        self.ring_blocks = len(ring)

    @property
    def held(self) -> list[int]:
        return [block for block in self.row if block >= 0]

    @property
    def wraps(self) -> bool:
        return self.max_blocks is None or len(self.row) < self.max_blocks

    def overwrites(self, column: int) -> bool:
        return column >= self.num_pure_sink_blocks

    def column(self, logical_block: int, block_size: int) -> int:
        return self.sink_window.column(logical_block, self.ring_blocks, block_size)

    def live_blocks(self, num_computed: int, block_size: int) -> list[int]:
        """Logical blocks with a computed token that the query at ``num_computed`` may see."""
        sinks, computed = self.num_sink_blocks, cdiv(num_computed, block_size)
        first = self.sink_window.window_start(num_computed) // block_size
        return [*range(min(sinks, computed)), *range(max(sinks, first), computed)]

    def slots(self, start: int, stop: int, block_size: int) -> array[int]:
        """Slots (int64) of the tokens at positions ``[start, stop)``."""
        slots = array("q")
        while start < stop:
            block, offset = divmod(start, block_size)
            count = min(block_size - offset, stop - start)
            block_id = self.row[self.column(block, block_size)]
            assert block_id >= 0, f"position {start} has no block"
            first = block_id * block_size + offset
            slots.extend(range(first, first + count))
            start += count
        return slots
