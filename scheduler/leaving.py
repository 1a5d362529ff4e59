"""What several sequences would give back if they left the cache together.

A block that only they hold becomes free; one that others hold as well does not.
"""

from __future__ import annotations

from collections import Counter

from .block_pool import BlockPool
from .block_table import BlockTable


class Leaving:
    """Tables that are to be freed, added one by one; nothing is freed yet.

    Attributes:
        num_blocks: unreserved blocks that this would give.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.num_blocks = 0
        self._pool = pool
        self._overwriters: Counter[int] = Counter()  # of each block, by its number
        self._readers: Counter[int] = Counter()

    def add(self, table: BlockTable) -> None:
        for column, block_id in enumerate(table.row):
            if block_id < 0:
                self.num_blocks += 1
                continue
            before = self._num_regained(block_id)
            holders = self._overwriters if table.overwrites(column) else self._readers
            holders[block_id] += 1
            self.num_blocks += self._num_regained(block_id) - before

    def num_refs(self, block_id: int) -> int:
        """How many of them hold a block."""
        return self._overwriters[block_id] + self._readers[block_id]

    def _num_regained(self, block_id: int) -> int:
        return self._pool.num_regained(
            block_id, overwriters=self._overwriters[block_id], readers=self._readers[block_id]
        )
