"""The batch of a step, as every op takes it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# The window_size of full attention: nothing is evicted, no token is a sink.
FULL_ATTENTION = 2**31 - 1


class BatchTensors(NamedTuple):
    """Where a step's T tokens of B sequences sit and go.

    Ops take it as one ``Tensor[]``, in the order of the fields; ``csrc/include/batch.h`` reads it.

    Args:
        token_ids: int64 [T].
        positions: int64 [T], of each token in its stream.
        sink_positions: int64 [T], each token's position towards the sinks.
        slot_mapping: int64 [T], where each token's key and value go; -1 writes nothing.
        block_table: int32 [B, width], sink columns, then the ring; -1 where there is no block.
        query_start_loc: int32 [B + 1], where each sequence's chunk starts; it may be empty.
        seq_lens: int64 [B], length of each stream with its chunk.
        num_sink_tokens: int32 [B], 0 for full attention.
        window_size: int32 [B], `FULL_ATTENTION` for full attention.
        window_floor: int64 [B], first position behind the sinks whose key there is: from
            num_sink_tokens up to the chunk's first position; 0 for all, and for full attention.
        ring_blocks: int32 [B], columns of the ring.
    """

    token_ids: Tensor
    positions: Tensor
    sink_positions: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    num_sink_tokens: Tensor
    window_size: Tensor
    window_floor: Tensor
    ring_blocks: Tensor
