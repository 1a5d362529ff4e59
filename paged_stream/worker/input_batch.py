"""From a scheduler's message to the tensors of one forward pass.

Python touches a sequence once; its tokens and blocks are copied and laid out whole.
"""

from __future__ import annotations

import torch

from paged_stream import ops
from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.scheduler.output import ScheduledSequence, SchedulerOutput
from paged_stream.worker.staging import to_device


def build_forward_batch(
    output: SchedulerOutput, block_size: int, device: torch.device
) -> ForwardBatch:
    """Lay a step's chunks end to end and work out where each token sits and goes."""
    sequences = output.sequences
    token_ids = bytearray().join([sequence.token_ids for sequence in sequences])
    block_rows = bytearray().join([sequence.block_row for sequence in sequences])
    host, has_gap = ops.lay_out_batch(
        torch.frombuffer(token_ids, dtype=torch.int32),
        torch.frombuffer(block_rows, dtype=torch.int32),
        map(_layout_of, sequences),
        block_size,
    )
    tensors = host if device.type == "cpu" else ops.BatchTensors(*to_device(host, device))
    return ForwardBatch(tensors=tensors, has_gap=has_gap, host=host)


def _layout_of(sequence: ScheduledSequence) -> ops.SequenceLayout:
    window = sequence.sink_window
    is_full = window.window_size is None
    return ops.SequenceLayout(
        len(sequence.token_ids),
        sequence.num_computed_tokens,
        0 if is_full else window.num_sink_tokens,
        ops.FULL_ATTENTION if window.window_size is None else window.window_size,
        window.window_floor,
        sequence.ring_blocks,
        len(sequence.block_row),
    )
