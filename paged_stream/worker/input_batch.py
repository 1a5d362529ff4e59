"""From a scheduler's message to the tensors of one forward pass.

Python touches a sequence once; its tokens and blocks are copied and laid out whole.
"""

from __future__ import annotations

import torch

from paged_stream import ops
from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.scheduler.output import SchedulerOutput
from paged_stream.worker.staging import to_device


def build_forward_batch(
    output: SchedulerOutput, block_size: int, device: torch.device
) -> ForwardBatch:
    """Lay a step's chunks end to end and work out where each token sits and goes."""
    sequences = output.sequences
    windows = [sequence.sink_window for sequence in sequences]
    token_ids = bytearray().join([sequence.token_ids for sequence in sequences])
    block_rows = bytearray().join([sequence.block_row for sequence in sequences])
    columns = ops.SequenceColumns(
        lengths=[len(sequence.token_ids) for sequence in sequences],
        starts=[sequence.num_computed_tokens for sequence in sequences],
        num_sink_tokens=[0 if w.window_size is None else w.num_sink_tokens for w in windows],
        window_size=[w.window_size or ops.FULL_ATTENTION for w in windows],
        window_floor=[w.window_floor for w in windows],
        ring_blocks=[sequence.ring_blocks for sequence in sequences],
        row_lengths=[len(sequence.block_row) for sequence in sequences],
    )
    host, has_gap = ops.lay_out_batch(
        torch.frombuffer(token_ids, dtype=torch.int32),
        torch.frombuffer(block_rows, dtype=torch.int32),
        columns,
        block_size,
    )
    tensors = host if device.type == "cpu" else ops.BatchTensors(*to_device(host, device))
    return ForwardBatch(tensors=tensors, has_gap=has_gap, host=host)
