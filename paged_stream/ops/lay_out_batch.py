"""Where the tokens of a step sit and go."""

from __future__ import annotations

from array import array
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from paged_stream.ops.batch import BatchTensors
from paged_stream.ops.library import ops


class SequenceColumns(NamedTuple):
    """What the places of B sequences in a batch follow from: B numbers of each kind.

    Args:
        lengths: tokens of the chunks.
        starts: positions of the chunks' first tokens.
        num_sink_tokens: 0 for full attention.
        window_size: `FULL_ATTENTION` for full attention.
        window_floor: first position behind the sinks whose key there is, 0 for all.
        ring_blocks: columns of the rings.
        row_lengths: columns of the rows of the block table.
    """

    lengths: list[int]
    starts: list[int]
    num_sink_tokens: list[int]
    window_size: list[int]
    window_floor: list[int]
    ring_blocks: list[int]
    row_lengths: list[int]


def lay_out_batch(
    token_ids: Tensor, block_rows: Tensor, sequences: SequenceColumns, block_size: int
) -> tuple[BatchTensors, bool]:
    """Work out where the tokens of a step sit and go, on the host.

    Args:
        token_ids: int32 [T], the sequences' chunks end to end.
        block_rows: int32, their rows of the block table end to end.
        sequences: one at least.
        block_size: tokens per block.

    Returns:
        The batch, and whether any token's ``sink_positions`` differ from its ``positions``.
    """
    count = len(sequences.lengths)
    assert all(len(column) == count for column in sequences)
    numbers = array("q", list(chain.from_iterable(sequences)))
    table = torch.frombuffer(numbers, dtype=torch.int64).view(len(sequences), count)
    tensors, has_gap = ops.lay_out_batch.default(token_ids, block_rows, table, block_size)
    return BatchTensors(*tensors), has_gap
