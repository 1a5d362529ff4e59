"""Who holds which block, and how much each sequence may ever hold.

The invariant: free blocks cover every column that is still empty and every shared block that may
have to be replaced, so a sequence that was admitted never lacks a block.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from .block_pool import BlockPool
from .block_table import BlockTable, row_shape
from .leaving import Leaving
from .output import CopyBlock, KVOperation, MoveTokens
from .prefix import find_prefix, hash_block, hash_seed
from .sink_window import SinkWindow, cdiv


class KVCacheManager:
    """Reserves, allocates, shares, recycles and frees the blocks of all sequences.

    What has to be done to the cache itself is collected in ``operations``, to be carried out in
    order before the next step. Whoever was admitted always has room for steps of ``min_chunk``
    tokens.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        min_chunk: int = 1,
        enable_prefix_caching: bool = True,
    ) -> None:
        self.block_size = block_size
        self._min_chunk = min_chunk
        self.enable_prefix_caching = enable_prefix_caching
        self.pool = BlockPool(num_blocks)
        self.operations: list[KVOperation] = []
        self._num_missing = 0  # columns without a block, over all tables
        self._tables: dict[int, BlockTable] = {}

    def __contains__(self, seq_id: int) -> bool:
        return seq_id in self._tables

    def __getitem__(self, seq_id: int) -> BlockTable:
        return self._tables[seq_id]

    @property
    def num_unreserved_blocks(self) -> int:
        return self.pool.num_free - self.pool.num_owed - self._num_missing

    def min_blocks(self, sink_window: SinkWindow, max_tokens: int | None) -> int:
        """Blocks a sequence of at most ``max_tokens`` tokens needs to run at all."""
        sinks, ring = self._shape(sink_window, self._max_blocks(max_tokens), chunk=1)
        return sinks + ring

    # Prefixes

    def num_missing(
        self,
        sink_window: SinkWindow,
        max_tokens: int | None,
        hashes: Sequence[bytes],
        leaving: Leaving | None = None,
    ) -> int:
        """Blocks that would have to become free to admit a sequence; 0 or less if it fits. A block
        that others hold is for nothing if nobody will ever overwrite it; any other costs as much as
        one of the sequence's own.

        Args:
            hashes: of the sequence's leading full blocks.
            leaving: tables that will be gone by then.
        """
        needed = self.min_blocks(sink_window, max_tokens) - self.num_unreserved_blocks
        if leaving is not None:
            needed -= leaving.num_blocks
        for block_hash in hashes[: sink_window.num_pure_sink_blocks(self.block_size)]:
            block_id = self.pool.find(block_hash)
            if block_id is None:
                break
            released = 0 if leaving is None else leaving.num_refs(block_id)
            needed -= self.pool.num_refs(block_id) > released
        return needed

    def remember(
        self, seq_id: int, num_computed: int, token_ids: Callable[[int, int], array[int]]
    ) -> int:
        """Enter the blocks that have become full into the index.

        Args:
            token_ids: ids at positions from the first argument up to the second.

        Returns:
            The position up to which ids will not be asked for again.
        """
        table, size = self._tables[seq_id], self.block_size
        if table.num_hashed_blocks is None:
            return num_computed
        for logical_block in range(table.num_hashed_blocks, num_computed // size):
            start = logical_block * size
            table.last_hash = hash_block(table.last_hash, token_ids(start, start + size))
            # Whatever the last chunk filled is still in the row: the ring has room for a chunk.
            self.pool.remember(table.row[table.column(logical_block, size)], table.last_hash)
        table.num_hashed_blocks = max(table.num_hashed_blocks, num_computed // size)
        return table.num_hashed_blocks * size

    # Coming and going

    def admit(
        self,
        seq_id: int,
        sink_window: SinkWindow,
        max_tokens: int | None,
        chunk: int,
        hashes: Sequence[bytes] = (),
        *,
        adapter: str = "",
    ) -> int | None:
        """Reserve for a sequence: enough for ``chunk``-token steps if there is room, and at least
        enough for single tokens.

        Args:
            hashes: of leading full blocks, to be shared if the cache holds them.
            adapter: as in `hash_seed`.

        Returns:
            How many leading blocks need not be computed; ``None``, and nothing changed, if there
            is no room.
        """
        assert seq_id not in self._tables, f"sequence {seq_id} admitted twice"
        max_blocks = self._max_blocks(max_tokens)
        hit = find_prefix(self.pool, sink_window, hashes, self.block_size)
        sinks, ring = self._shape(sink_window, max_blocks, chunk, hit.num_blocks * self.block_size)
        pure = min(sinks, sink_window.num_pure_sink_blocks(self.block_size))
        # A shared block takes a free one or, if it is to be overwritten one day, owes one.
        shared = sum(
            1
            for block, block_id in hit.blocks.items()
            if not self.pool.num_refs(block_id) or block >= pure
        )
        room = self.num_unreserved_blocks - shared + len(hit.blocks)
        if sinks + ring > room:
            smallest = self._shape(sink_window, max_blocks, 1)[1]
            ring = max(smallest, room - sinks)
            if sinks + ring > room:
                return None
        table = BlockTable(
            sink_window=sink_window,
            num_sink_blocks=sinks,
            num_pure_sink_blocks=pure,
            ring_blocks=ring,
            max_blocks=max_blocks,
            row=array("i", [-1]) * (sinks + ring),
            num_logical_blocks=hit.num_blocks,
            num_hashed_blocks=hit.num_blocks if self.enable_prefix_caching else None,
            last_hash=hashes[hit.num_blocks - 1]
            if hit.num_blocks
            else hash_seed(sink_window, adapter),
        )
        self._tables[seq_id] = table
        self._num_missing += sinks + ring
        for logical_block, block_id in hit.blocks.items():
            column = table.column(logical_block, self.block_size)
            self.pool.share(block_id, overwrites=table.overwrites(column))
            self._put(table, column, block_id)
        return hit.num_blocks

    def admit_parked(
        self,
        seq_id: int,
        sink_window: SinkWindow,
        max_tokens: int | None,
        num_computed: int,
        hashes: Sequence[bytes] = (),
    ) -> int | None:
        """Reserve for a sequence that comes back, and give it blocks for what it had computed.

        Args:
            hashes: of the leading blocks with nothing but sinks, to be shared if the cache holds
                them.

        Returns:
            How many leading blocks are shared and hold what they should; ``None``, and nothing
            changed, if there is no room.
        """
        num_shared = self.admit(seq_id, sink_window, max_tokens, 1, hashes)
        if num_shared is None:
            return None
        table = self._tables[seq_id]
        table.num_hashed_blocks = None
        for logical_block in table.live_blocks(num_computed, self.block_size):
            if logical_block >= num_shared:
                self._allocate(table, table.column(logical_block, self.block_size))
        table.num_logical_blocks = cdiv(num_computed, self.block_size)
        return num_shared

    def remember_sinks(self, seq_id: int, hashes: Sequence[bytes]) -> None:
        """Enter leading blocks with nothing but sinks, which hold what they should by now, into the
        index."""
        for block_id, block_hash in zip(self._tables[seq_id].row, hashes, strict=False):
            self.pool.remember(block_id, block_hash)

    def fork(self, parent_id: int, child_id: int, num_computed: int) -> bool:
        """Let a new sequence share all that another has computed. False, and nothing changed, if
        there is not enough room for both to go their own ways."""
        assert child_id not in self._tables, f"sequence {child_id} admitted twice"
        parent, size = self._tables[parent_id], self.block_size
        columns = [parent.column(block, size) for block in parent.live_blocks(num_computed, size)]
        # A block that is not full yet will be written by both: the child gets a copy.
        partial = columns.pop() if num_computed % size else -1
        # After a rewind, blocks that had been evicted before are missing.
        shared = [column for column in columns if parent.row[column] >= 0]
        needed = len(parent.row) - len(shared) + sum(map(parent.overwrites, shared))
        if needed > self.num_unreserved_blocks:
            return False
        child = BlockTable(
            sink_window=parent.sink_window,
            num_sink_blocks=parent.num_sink_blocks,
            num_pure_sink_blocks=parent.num_pure_sink_blocks,
            ring_blocks=parent.ring_blocks,
            max_blocks=parent.max_blocks,
            row=array("i", [-1]) * len(parent.row),
            num_logical_blocks=cdiv(num_computed, size),
            num_hashed_blocks=parent.num_hashed_blocks,
            last_hash=parent.last_hash,
        )
        self._tables[child_id] = child
        self._num_missing += len(child.row)
        for column in shared:
            self.pool.share(parent.row[column], overwrites=child.overwrites(column))
            self._put(child, column, parent.row[column])
        if partial >= 0:
            self._allocate(child, partial)
            self.operations.append(CopyBlock(parent.row[partial], child.row[partial]))
        return True

    def free(self, seq_id: int) -> None:
        table = self._tables.pop(seq_id)
        # Backwards: of a chain of hashed blocks, the end is to be reused first.
        for column in reversed(range(len(table.row))):
            if table.row[column] >= 0:
                self.pool.release(table.row[column], overwrites=table.overwrites(column))
            else:
                self._num_missing -= 1

    # Growing

    def num_lent(self, seq_id: int) -> int:
        """Blocks of its ring that a sequence gives back once it takes single tokens."""
        table = self._tables[seq_id]
        return table.ring_blocks - self._shape(table.sink_window, table.max_blocks, 1)[1]

    def fit(self, seq_id: int, num_computed: int, chunk: int, *, may_grow: bool) -> int:
        """Largest chunk, up to ``chunk``, that the sequence can take next.

        The ring grows towards the chunk when ``may_grow`` and blocks are unreserved, and
        returns to its smallest size when single tokens are asked for.
        """
        table = self._tables[seq_id]
        # Blocks given for steps that did not count are given anew: others may hold them by now.
        computed = cdiv(num_computed, self.block_size)
        table.num_logical_blocks = min(table.num_logical_blocks, computed)
        _, wanted = self._shape(table.sink_window, table.max_blocks, chunk, num_computed)
        if wanted > table.ring_blocks and may_grow:
            room = table.ring_blocks + max(0, self.num_unreserved_blocks)
            self._resize(table, min(wanted, room), num_computed)
        elif wanted < table.ring_blocks and chunk == 1:
            self._resize(table, wanted, num_computed)
        if not table.wraps:
            return chunk
        until_wrap = len(table.row) * self.block_size - num_computed
        largest = table.sink_window.max_chunk(table.ring_blocks, self.block_size)
        return min(chunk, max(largest, until_wrap))

    def max_decode_steps(self, seq_id: int, num_computed: int, wanted: int) -> int:
        """How many of ``wanted`` single tokens the sequence can take next with a row that stays as
        `allocate` leaves it: up to a block that others hold, which its column has to let go of, but
        not before the window has."""
        table, size = self._tables[seq_id], self.block_size
        if table.wraps:
            ring = table.ring_blocks
            wanted = min(wanted, table.sink_window.max_decode_steps(num_computed, ring, size))
        for logical_block in range(num_computed // size + 1, cdiv(num_computed + wanted, size)):
            block_id = table.row[table.column(logical_block, size)]
            if block_id >= 0 and self.pool.num_refs(block_id) > 1:
                return logical_block * size - num_computed
        return wanted

    def lacks_block(self, seq_id: int, position: int) -> bool:
        """Whether the column of a position has no block yet."""
        table = self._tables[seq_id]
        return table.row[table.column(position // self.block_size, self.block_size)] < 0

    def allocate(self, seq_id: int, num_tokens: int, *, spares_hashed: bool = False) -> None:
        """Give the sequence the blocks for its first ``num_tokens`` tokens. A ring column that
        comes round again keeps its block if nobody else holds it: the tokens in it are out of
        every later window.

        Args:
            spares_hashed: if the block can be found by its content, and there is a free one that
                cannot, take that instead. It costs nothing but the pages that it touches.
        """
        table = self._tables[seq_id]
        needed = cdiv(num_tokens, self.block_size)
        for logical_block in range(table.num_logical_blocks, needed):
            column = table.column(logical_block, self.block_size)
            if table.row[column] < 0:
                self._allocate(table, column)
            elif self.pool.num_refs(table.row[column]) > 1 or (
                spares_hashed and self.pool.would_spare(table.row[column])
            ):
                self._release(table, column)
                self._allocate(table, column)
            else:
                self.pool.forget(table.row[column])
        table.num_logical_blocks = max(table.num_logical_blocks, needed)

    # Editing

    def truncate(self, seq_id: int, num_computed: int) -> None:
        """Make everything from position ``num_computed`` on free to be written again."""
        table, size = self._tables[seq_id], self.block_size
        if num_computed % size:
            self._make_private(table, table.column(num_computed // size, size))
        table.num_logical_blocks = min(table.num_logical_blocks, cdiv(num_computed, size))
        table.num_hashed_blocks = None

    def close_gap(self, seq_id: int, first: int, start: int, end: int) -> None:
        """Move the tokens at ``[first, start)`` up so that they end where ``end`` is."""
        table, size = self._tables[seq_id], self.block_size
        table.num_hashed_blocks = None
        if first == start:
            return
        begin = first + end - start
        for logical_block in range(begin // size, cdiv(end, size)):
            self._make_private(table, table.column(logical_block, size))
        self.operations.append(
            MoveTokens(
                self.slots(seq_id, first, start), self.slots(seq_id, begin, end), end - start
            )
        )

    def slots(self, seq_id: int, start: int, stop: int) -> array[int]:
        """Slots (int64) of the tokens at positions ``[start, stop)``."""
        return self._tables[seq_id].slots(start, stop, self.block_size)

    def check_integrity(self) -> None:
        """Assert the invariants of the pool and of every table."""
        self.pool.check_integrity(
            (block_id, table.overwrites(column))
            for table in self._tables.values()
            for column, block_id in enumerate(table.row)
            if block_id >= 0
        )
        missing = sum(block_id < 0 for table in self._tables.values() for block_id in table.row)
        assert missing == self._num_missing
        assert self.num_unreserved_blocks >= 0, "more is promised than there is"
        for table in self._tables.values():
            assert len(table.held) == len(set(table.held)), "a block is held twice"
            assert len(table.row) == table.num_sink_blocks + table.ring_blocks
            pinned = min(table.num_sink_blocks, table.num_logical_blocks)
            assert all(block >= 0 for block in table.row[:pinned]), "a sink block was let go"

    def _put(self, table: BlockTable, column: int, block_id: int) -> None:
        assert table.row[column] < 0, "the column is taken"
        table.put(column, block_id)
        self._num_missing -= 1

    def _allocate(self, table: BlockTable, column: int) -> None:
        self._put(table, column, self.pool.allocate(overwrites=table.overwrites(column)))

    def _release(self, table: BlockTable, column: int) -> None:
        self.pool.release(table.row[column], overwrites=table.overwrites(column))
        table.put(column, -1)
        self._num_missing += 1

    def _make_private(self, table: BlockTable, column: int) -> None:
        """See to it that the block may be written: nobody else holds it, nor finds it by hash."""
        source = table.row[column]
        if self.pool.num_refs(source) == 1:
            self.pool.forget(source)
            return
        self._release(table, column)
        self._allocate(table, column)
        self.operations.append(CopyBlock(source, table.row[column]))

    def _max_blocks(self, max_tokens: int | None) -> int | None:
        return None if max_tokens is None else cdiv(max_tokens, self.block_size)

    def _shape(
        self, sink_window: SinkWindow, max_blocks: int | None, chunk: int, num_computed: int = 0
    ) -> tuple[int, int]:
        return row_shape(
            sink_window, max_blocks, chunk, num_computed, self.block_size, self._min_chunk
        )

    def _resize(self, table: BlockTable, ring_blocks: int, num_computed: int) -> None:
        """Change the ring's size: live blocks move to their new columns, the others are freed.

        Blocks beyond ``num_computed`` are freed too: they were given for a step that never came
        to its end.
        """
        sinks = table.num_sink_blocks
        missing = table.row[sinks:].count(-1)
        ring = array("i", [-1]) * ring_blocks
        kept: set[int] = set()
        computed = cdiv(num_computed, self.block_size)
        for logical_block in table.live_blocks(num_computed, self.block_size):
            if logical_block < sinks:
                continue
            column = table.column(logical_block, self.block_size)
            new_column = table.sink_window.column(logical_block, ring_blocks, self.block_size)
            assert ring[new_column - sinks] < 0, "the ring is too small for its live blocks"
            ring[new_column - sinks] = table.row[column]
            kept.add(column)
        for column in reversed(range(sinks, len(table.row))):
            block_id = table.row[column]
            if block_id >= 0 and column not in kept:
                self.pool.release(block_id, overwrites=True)
        self._num_missing += ring.count(-1) - missing
        table.resize(ring)
        # Sink blocks stay, computed or not.
        table.num_logical_blocks = max(computed, min(table.num_logical_blocks, sinks))
