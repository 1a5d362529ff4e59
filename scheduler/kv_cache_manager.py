"""Who holds which block, and how much each sequence may ever hold.

The invariant: reservations never exceed the pool and no table outgrows its reservation, so a
sequence that was admitted never lacks a block.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from .block_pool import BlockPool
from .sink_window import SinkWindow, cdiv


@dataclass(slots=True, kw_only=True)
class BlockTable:
    """One sequence's row and its bound.

    ``row`` has the pinned sink columns first, then ``ring_blocks`` columns that logical blocks
    take in turn; -1 is a column not reached yet. ``max_blocks`` is the number of blocks the
    sequence can ever touch, or ``None`` for an endless one.
    """

    sink_window: SinkWindow
    num_sink_blocks: int
    ring_blocks: int
    max_blocks: int | None
    row: array[int]
    num_logical_blocks: int = 0

    @property
    def held(self) -> list[int]:
        return [block for block in self.row if block >= 0]

    @property
    def wraps(self) -> bool:
        return self.max_blocks is None or len(self.row) < self.max_blocks


class KVCacheManager:
    """Reserves, allocates, recycles and frees the blocks of all sequences."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.num_reserved_blocks = 0
        self._tables: dict[int, BlockTable] = {}

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self._tables

    def __getitem__(self, seq_id: int) -> BlockTable:
        return self._tables[seq_id]

    @property
    def num_unreserved_blocks(self) -> int:
        return self.pool.num_blocks - self.num_reserved_blocks

    def min_blocks(self, sink_window: SinkWindow, max_tokens: int | None) -> int:
        """Blocks a sequence of at most ``max_tokens`` tokens needs to run at all."""
        sinks, ring = self._shape(sink_window, self._max_blocks(max_tokens), chunk=1)
        return sinks + ring

    def admit(
        self, seq_id: int, sink_window: SinkWindow, max_tokens: int | None, chunk: int
    ) -> bool:
        """Reserve for a new sequence: enough for ``chunk``-token steps if there is room, and at
        least enough for single tokens. False, and nothing changed, if even that does not fit."""
        assert seq_id not in self._tables, f"sequence {seq_id} admitted twice"
        max_blocks = self._max_blocks(max_tokens)
        sinks, ring = self._shape(sink_window, max_blocks, chunk)
        if sinks + ring > self.num_unreserved_blocks:
            smallest = self._shape(sink_window, max_blocks, 1)[1]
            ring = max(smallest, self.num_unreserved_blocks - sinks)
            if sinks + ring > self.num_unreserved_blocks:
                return False
        self.num_reserved_blocks += sinks + ring
        self._tables[seq_id] = BlockTable(
            sink_window=sink_window,
            num_sink_blocks=sinks,
            ring_blocks=ring,
            max_blocks=max_blocks,
            row=array("i", [-1]) * (sinks + ring),
        )
        return True

    def fit(self, seq_id: int, num_computed: int, chunk: int, *, may_grow: bool) -> int:
        """Largest chunk, up to ``chunk``, that the sequence can take next.

        The ring grows towards the chunk when ``may_grow`` and blocks are unreserved, and
        returns to its smallest size when single tokens are asked for.
        """
        table = self._tables[seq_id]
        _, wanted = self._shape(table.sink_window, table.max_blocks, chunk)
        if wanted > table.ring_blocks and may_grow:
            room = table.ring_blocks + self.num_unreserved_blocks
            self._resize(table, min(wanted, room), num_computed)
        elif wanted < table.ring_blocks and chunk == 1:
            self._resize(table, wanted, num_computed)
        if not table.wraps:
            return chunk
        return min(chunk, table.sink_window.max_chunk(table.ring_blocks, self.block_size))

    def allocate(self, seq_id: int, num_tokens: int) -> None:
        """Give the sequence the blocks for its first ``num_tokens`` tokens. A ring column that
        comes round again keeps its block: the tokens in it are out of every later window."""
        table = self._tables[seq_id]
        needed = cdiv(num_tokens, self.block_size)
        for logical_block in range(table.num_logical_blocks, needed):
            column = table.sink_window.column(logical_block, table.ring_blocks, self.block_size)
            if table.row[column] < 0:
                table.row[column] = self.pool.allocate()
        table.num_logical_blocks = max(table.num_logical_blocks, needed)

    def free(self, seq_id: int) -> None:
        table = self._tables.pop(seq_id)
        self.pool.release(table.held)
        self.num_reserved_blocks -= len(table.row)

    def check_integrity(self) -> None:
        """Assert the invariants of the pool and of every table."""
        self.pool.check_integrity(b for table in self._tables.values() for b in table.held)
        widths = [len(table.row) for table in self._tables.values()]
        assert sum(widths) == self.num_reserved_blocks <= self.pool.num_blocks
        for table in self._tables.values():
            assert len(table.row) == table.num_sink_blocks + table.ring_blocks
            pinned = min(table.num_sink_blocks, table.num_logical_blocks)
            assert all(block >= 0 for block in table.row[:pinned]), "a sink block was let go"

    def _max_blocks(self, max_tokens: int | None) -> int | None:
        return None if max_tokens is None else cdiv(max_tokens, self.block_size)

    def _shape(
        self, sink_window: SinkWindow, max_blocks: int | None, chunk: int
    ) -> tuple[int, int]:
        """Sink and ring columns for steps of ``chunk`` tokens."""
        if sink_window.window_size is None:
            assert max_blocks is not None, "full attention needs a bound"
            return 0, max_blocks
        sinks = sink_window.num_sink_blocks(self.block_size)
        ring = sink_window.ring_blocks(chunk, self.block_size)
        if max_blocks is not None:
            # At least one ring column keeps the modulus of a row that is all sinks defined.
            sinks, ring = min(sinks, max_blocks), min(ring, max(1, max_blocks - sinks))
        return sinks, ring

    def _resize(self, table: BlockTable, ring_blocks: int, num_computed: int) -> None:
        """Change the ring's size: live blocks move to their new columns, the others are freed.

        Blocks beyond ``num_computed`` are freed too: they were given for a step that never came
        to its end.
        """
        sinks = table.num_sink_blocks
        row = table.row[:sinks] + array("i", [-1]) * ring_blocks
        first = table.sink_window.window_start(num_computed) // self.block_size
        computed = cdiv(num_computed, self.block_size)
        for logical_block in range(max(sinks, first), computed):
            column = table.sink_window.column(logical_block, table.ring_blocks, self.block_size)
            new_column = table.sink_window.column(logical_block, ring_blocks, self.block_size)
            assert row[new_column] < 0, "the ring is too small for its live blocks"
            row[new_column] = table.row[column]
        self.pool.release(set(table.row[sinks:]) - set(row[sinks:]) - {-1})
        self.num_reserved_blocks += ring_blocks - table.ring_blocks
        table.row, table.ring_blocks = row, ring_blocks
        # Sink blocks stay, computed or not.
        table.num_logical_blocks = max(computed, min(table.num_logical_blocks, sinks))
