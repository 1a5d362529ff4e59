"""From a scheduler's message to the tensors of one forward pass.

Python touches a sequence once; its tokens and blocks are copied and laid out whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paged_stream import ops
from paged_stream.attention.metadata import AttentionMetadata
from paged_stream.ops import BatchLayout
from paged_stream.scheduler.output import SchedulerOutput
from paged_stream.worker.staging import to_device

_FULL_ATTENTION = 2**31 - 1  # window_size of a sequence without a window


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    """Input of one forward pass over T tokens.

    Args:
        token_ids: int64 [T].
        query_start_loc: where each sequence's chunk starts, B + 1 host integers.
        attention: what the attention layers need.
    """

    token_ids: torch.Tensor
    query_start_loc: list[int]
    attention: AttentionMetadata


def build_forward_batch(
    output: SchedulerOutput, block_size: int, device: torch.device
) -> ForwardBatch:
    """Lay a step's chunks end to end and work out where each token sits and goes."""
    sequences = output.sequences
    windows = [sequence.sink_window for sequence in sequences]
    token_ids = bytearray().join([sequence.token_ids for sequence in sequences])
    block_rows = bytearray().join([sequence.block_row for sequence in sequences])
    layout = ops.lay_out_batch(
        torch.frombuffer(token_ids, dtype=torch.int32),
        torch.frombuffer(block_rows, dtype=torch.int32),
        block_size,
        lengths=[len(sequence.token_ids) for sequence in sequences],
        starts=[sequence.num_computed_tokens for sequence in sequences],
        num_sink_tokens=[0 if w.window_size is None else w.num_sink_tokens for w in windows],
        window_size=[w.window_size or _FULL_ATTENTION for w in windows],
        window_floor=[w.window_floor for w in windows],
        ring_blocks=[sequence.ring_blocks for sequence in sequences],
        row_lengths=[len(sequence.block_row) for sequence in sequences],
    )
    host = None
    moved = layout
    if device.type != "cpu":
        host = _metadata(layout, None)
        moved = BatchLayout._make([*to_device(layout[:-1], device), layout.has_gap])
    return ForwardBatch(
        token_ids=moved.token_ids,
        query_start_loc=layout.query_start_loc.tolist(),
        attention=_metadata(moved, host),
    )


def _metadata(layout: BatchLayout, host: AttentionMetadata | None) -> AttentionMetadata:
    return AttentionMetadata(
        query_start_loc=layout.query_start_loc,
        seq_lens=layout.seq_lens,
        num_sink_tokens=layout.num_sink_tokens,
        window_size=layout.window_size,
        window_floor=layout.window_floor,
        block_table=layout.block_table,
        ring_blocks=layout.ring_blocks,
        slot_mapping=layout.slot_mapping,
        positions=layout.positions,
        sink_positions=layout.sink_positions if layout.has_gap else None,
        host=host,
    )
