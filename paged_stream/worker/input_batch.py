"""From a scheduler's message to the tensors of one forward pass.

Everything is built in numpy from buffers: no Python loop runs over tokens or blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from paged_stream.attention.metadata import AttentionMetadata
from paged_stream.scheduler.output import SchedulerOutput
from paged_stream.scheduler.sink_window import SinkWindow

FULL_ATTENTION = np.iinfo(np.int32).max  # window_size of a sequence without a window


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
    lens = np.array([len(s.token_ids) for s in sequences])
    starts = np.array([s.num_computed_tokens for s in sequences], dtype=np.int64)
    sinks = np.array([_num_sink_tokens(s.sink_window) for s in sequences], dtype=np.int64)
    windows = np.array([s.sink_window.window_size or FULL_ATTENTION for s in sequences])
    floors = np.array([s.sink_window.window_floor for s in sequences], dtype=np.int64)
    rings = np.array([s.ring_blocks for s in sequences], dtype=np.int32)
    table = np.full((len(sequences), max(len(s.block_row) for s in sequences)), -1, np.int32)
    for row, sequence in zip(table, sequences, strict=True):
        row[: len(sequence.block_row)] = sequence.block_row
    query_start_loc = np.zeros(len(sequences) + 1, np.int32)
    np.cumsum(lens, out=query_start_loc[1:])

    # Per token
    owner = np.repeat(np.arange(len(sequences)), lens)
    positions = np.arange(query_start_loc[-1]) + np.repeat(starts - query_start_loc[:-1], lens)
    block, offset = np.divmod(positions, block_size)
    sink_blocks = -(-sinks // block_size)[owner]
    column = np.where(
        block < sink_blocks, block, sink_blocks + (block - sink_blocks) % rings[owner]
    )
    slot_mapping = table[owner, column].astype(np.int64) * block_size + offset
    window_start = np.maximum(positions - (windows - 1)[owner], np.maximum(sinks, floors)[owner])
    sink_positions = positions - (window_start - sinks[owner])
    grown = bool((sink_positions < positions).any())

    def tensor(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(values).to(device, dtype)

    return ForwardBatch(
        token_ids=tensor(np.concatenate([s.token_ids for s in sequences]), torch.int64),
        query_start_loc=query_start_loc.tolist(),
        attention=AttentionMetadata(
            query_start_loc=tensor(query_start_loc, torch.int32),
            seq_lens=tensor(starts + lens, torch.int64),
            num_sink_tokens=tensor(sinks, torch.int32),
            window_size=tensor(windows, torch.int32),
            window_floor=tensor(floors, torch.int64),
            block_table=tensor(table, torch.int32),
            ring_blocks=tensor(rings, torch.int32),
            slot_mapping=tensor(slot_mapping, torch.int64),
            positions=tensor(positions, torch.int64),
            sink_positions=tensor(sink_positions, torch.int64) if grown else None,
        ),
    )


def _num_sink_tokens(sink_window: SinkWindow) -> int:
    return 0 if sink_window.window_size is None else sink_window.num_sink_tokens
