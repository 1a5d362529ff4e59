"""Blocks found by content: hashes of full blocks, and how much of a prompt they cover.

A hash covers a block's tokens, all before them, the sinks and window under which they were
computed, and the adapter: all that its K and V depend on.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from .block_pool import BlockPool
from .sink_window import SinkWindow


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """Blocks found by content: the first ``num_blocks`` logical blocks need not be computed;
    ``blocks`` maps those of them that are still visible to blocks of the pool."""

    num_blocks: int
    blocks: dict[int, int]


def hash_block(previous: bytes, token_ids: array[int]) -> bytes:
    """Hash of a full block: of its tokens and of all before them."""
    return hashlib.blake2b(previous + token_ids.tobytes(), digest_size=16).digest()


def hash_seed(sink_window: SinkWindow, adapter: str = "") -> bytes:
    """What the hash of a first block follows.

    Args:
        adapter: the key of the sequence's, if it has one.
    """
    return repr((sink_window.num_sink_tokens, sink_window.window_size, adapter)).encode()


def find_prefix(
    pool: BlockPool, sink_window: SinkWindow, hashes: Sequence[bytes], block_size: int
) -> PrefixHit:
    """Longest run of leading blocks after which everything visible is in the cache.

    Args:
        hashes: of the leading full blocks.
    """
    found = [pool.find(block_hash) for block_hash in hashes]
    sinks = sink_window.num_sink_blocks(block_size)
    best = first = last_gap = 0  # last_gap: one behind the last block that is not found
    for count, block_id in enumerate(found, 1):
        if block_id is None:
            last_gap = count
            if count <= sinks:
                break
        start = sink_window.window_start(count * block_size) // block_size
        if last_gap <= start:
            best, first = count, start
    blocks = {}
    for block in (*range(min(sinks, best)), *range(max(sinks, first), best)):
        block_id = found[block]
        assert block_id is not None
        blocks[block] = block_id
    return PrefixHit(best, blocks)
