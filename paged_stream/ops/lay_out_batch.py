"""Where the tokens of a step sit and go."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from paged_stream.ops.batch import BatchTensors
from paged_stream.ops.library import ops


class SequenceLayout(NamedTuple):
    """What a sequence's place in a batch follows from.

    Args:
        length: tokens of its chunk.
        start: position of the chunk's first token.
        num_sink_tokens: 0 for full attention.
        window_size: `FULL_ATTENTION` for full attention.
        window_floor: first position behind the sinks whose key there is, 0 for all.
        ring_blocks: columns of the ring.
        row_length: columns of its row of the block table.
    """

    length: int
    start: int
    num_sink_tokens: int
    window_size: int
    window_floor: int
    ring_blocks: int
    row_length: int


def lay_out_batch(
    token_ids: Tensor, block_rows: Tensor, sequences: Iterable[SequenceLayout], block_size: int
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
    numbers = array("q", chain.from_iterable(sequences))
    table = torch.frombuffer(numbers, dtype=torch.int64).view(-1, len(SequenceLayout._fields))
    tensors, has_gap = ops.lay_out_batch.default(token_ids, block_rows, table, block_size)
    return BatchTensors(*tensors), has_gap
