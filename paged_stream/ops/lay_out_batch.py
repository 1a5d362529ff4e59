"""Where the tokens of a step sit and go."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from paged_stream.ops.library import ops


class BatchLayout(NamedTuple):
    """Where a step's T tokens of B sequences sit and go; see `AttentionMetadata`.

    ``sink_positions`` differ from ``positions`` somewhere if ``has_gap``.
    """

    token_ids: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    num_sink_tokens: Tensor
    window_size: Tensor
    window_floor: Tensor
    ring_blocks: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    positions: Tensor
    sink_positions: Tensor
    has_gap: bool


def lay_out_batch(
    token_ids: Tensor,
    block_rows: Tensor,
    block_size: int,
    *,
    lengths: list[int],
    starts: list[int],
    num_sink_tokens: list[int],
    window_size: list[int],
    window_floor: list[int],
    ring_blocks: list[int],
    row_lengths: list[int],
) -> BatchLayout:
    """Work out where the tokens of a step sit and go. Lists have one number per sequence.

    Args:
        token_ids: int32 [T], the sequences' chunks end to end.
        block_rows: int32, their rows of the block table end to end.
        block_size: tokens per block.
        lengths: of the chunks.
        starts: positions of the chunks' first tokens.
        num_sink_tokens: 0 for full attention.
        window_size: the largest int32 for full attention.
        window_floor: first position behind the sinks whose key there is, 0 for all.
        ring_blocks: columns of the ring.
        row_lengths: columns of the row.
    """
    layout = ops.lay_out_batch.default(
        token_ids,
        block_rows,
        block_size,
        lengths,
        starts,
        num_sink_tokens,
        window_size,
        window_floor,
        ring_blocks,
        row_lengths,
    )
    return BatchLayout(*layout)
