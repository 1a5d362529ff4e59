"""Which blocks are free, who else holds a block, and which content can be found again.

A block is held by tables, each of which may overwrite it in place one day (a ring column) or never
will (a column of sink tokens alone). A block that several hold must not be overwritten: whoever
wants to takes a fresh one instead. `num_owed` counts the fresh blocks that this can take, so that
admission can keep them back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Reference counts, free blocks in the order in which they are to be reused, and an index of
    full blocks by the hash of all that their K and V depend on.

    A block that is freed keeps its content and its place in the index until it is reused. Blocks
    without a hash are reused first, the one freed last before all (its memory is the likeliest to
    be resident); then untouched ones; then hashed ones, least recently freed first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_owed = 0
        self._free = OrderedDict.fromkeys(range(num_blocks))
        self._overwriters = [0] * num_blocks  # tables that may overwrite the block
        self._readers = [0] * num_blocks  # tables that never will
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._index: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def num_refs(self, block_id: int) -> int:
        return self._overwriters[block_id] + self._readers[block_id]

    def allocate(self, *, overwrites: bool) -> int:
        """Take a block for one table; what it held is forgotten."""
        assert self._free, "allocation beyond the reservations"
        block_id, _ = self._free.popitem(last=False)
        self.forget(block_id)
        self._count(block_id, overwrites, 1)
        return block_id

    def share(self, block_id: int, *, overwrites: bool) -> None:
        """Let one more table hold a block, with what is in it."""
        self._free.pop(block_id, None)
        self._count(block_id, overwrites, 1)

    def release(self, block_id: int, *, overwrites: bool) -> None:
        """Let go of one table's hold."""
        assert self.num_refs(block_id), f"block {block_id} freed twice"
        self._count(block_id, overwrites, -1)
        if not self.num_refs(block_id):
            self._free[block_id] = None
            if self._hashes[block_id] is None:
                self._free.move_to_end(block_id, last=False)

    def _count(self, block_id: int, overwrites: bool, change: int) -> None:
        self.num_owed -= self._owed(block_id)
        (self._overwriters if overwrites else self._readers)[block_id] += change
        self.num_owed += self._owed(block_id)

    def _owed(self, block_id: int) -> int:
        return _owed(self._overwriters[block_id], self._readers[block_id])

    def num_regained(self, block_id: int, *, overwriters: int, readers: int) -> int:
        """Blocks that are free or not owed any more once so many tables let go of this one."""
        left = self._overwriters[block_id] - overwriters, self._readers[block_id] - readers
        return self._owed(block_id) - _owed(*left) + (left == (0, 0))

    # Content

    def find(self, block_hash: bytes) -> int | None:
        return self._index.get(block_hash)

    def remember(self, block_id: int, block_hash: bytes) -> None:
        """Enter a full block into the index, unless its content is there already."""
        if block_hash not in self._index:
            self._index[block_hash] = block_id
            self._hashes[block_id] = block_hash

    def forget(self, block_id: int) -> None:
        """Take a block out of the index: it is about to be overwritten."""
        block_hash = self._hashes[block_id]
        if block_hash is not None:
            del self._index[block_hash]
            self._hashes[block_id] = None

    def would_spare(self, block_id: int) -> bool:
        """Whether the block is in the index and the next one to be reused is not."""
        if self._hashes[block_id] is None or not self._free:
            return False
        return self._hashes[next(iter(self._free))] is None

    def check_integrity(self, held: Iterable[tuple[int, bool]]) -> None:
        """Assert that blocks and counts are those of ``held``: (block, overwrites) of every
        column of every table."""
        overwriters, readers = [0] * self.num_blocks, [0] * self.num_blocks
        for block_id, overwrites in held:
            (overwriters if overwrites else readers)[block_id] += 1
        assert (overwriters, readers) == (self._overwriters, self._readers), "references differ"
        for block_id in range(self.num_blocks):
            assert (block_id in self._free) == (self.num_refs(block_id) == 0)
        assert self.num_owed == sum(map(self._owed, range(self.num_blocks)))
        hashed = {h: block_id for block_id, h in enumerate(self._hashes) if h is not None}
        assert hashed == self._index, "the index differs from the blocks' hashes"


def _owed(overwriters: int, readers: int) -> int:
    """Fresh blocks needed until nobody overwrites what others hold: the last may keep it."""
    return max(0, overwriters - (readers == 0))
