"""Which blocks of the cache are free."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """A stack of free block ids; a block is either free or held by exactly one table."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = bytearray(b"\x01" * num_blocks)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        """Take the block freed last: its memory is the likeliest to be resident."""
        assert self._free, "allocation beyond the reservations"
        block_id = self._free.pop()
        self._is_free[block_id] = 0
        return block_id

    def release(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            assert not self._is_free[block_id], f"block {block_id} freed twice"
            self._is_free[block_id] = 1
            self._free.append(block_id)

    def check_integrity(self, held: Iterable[int]) -> None:
        """Assert that the free blocks and the ``held`` ones are all blocks, each exactly once."""
        free, held = set(self._free), list(held)
        assert len(free) == len(self._free), "a block is free twice"
        assert len(held) == len(set(held)), "a block is held twice"
        assert free.isdisjoint(held), "a block is free and held"
        assert len(free) + len(held) == self.num_blocks, "a block is lost"
        assert all(self._is_free[b] for b in free) and not any(self._is_free[b] for b in held)
