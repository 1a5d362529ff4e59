"""Which keys a step's tokens see, as segments that libraries of dense attention can compute.

The tokens of a chunk that stand behind the sinks see two runs of keys: their window, through
``query``, with a mask that is causal and perhaps local, and all sinks, through ``sink_query``, with
no mask. Tokens among the sinks see what is before them. So each token is in one segment of runs
that end with it, and most are in one of sinks beside; results are merged by their log-sum-exp.
Everything here is on the host, with no loop over tokens or blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from paged_stream.ops import FULL_ATTENTION, BatchTensors


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence with consecutive keys.

    Args:
        row: the sequence.
        first_token: its index in the batch.
        num_tokens: tokens from there on.
        first_key: its position.
        num_keys: keys from there on.
        is_causal: the last token goes with the last key, the one before with the one before, and
            each sees keys up to its own; else all tokens see all keys.
        window: if causal, each token sees that many keys at most; ``None`` for all.
    """

    row: int
    first_token: int
    num_tokens: int
    first_key: int
    num_keys: int
    is_causal: bool
    window: int | None = None


def split_step(host: BatchTensors) -> tuple[list[Segment], list[Segment]]:
    """Cut a step into segments.

    Args:
        host: the batch on the host.

    Returns:
        Segments whose keys end with the tokens themselves, which together are all tokens, and
        segments whose keys are sinks, all of them visible.
    """
    own: list[Segment] = []
    sinks: list[Segment] = []
    bounds = host.query_start_loc.tolist()
    columns = (host.seq_lens, host.num_sink_tokens, host.window_size, host.window_floor)
    for row, (end, num_sinks, window, floor) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        first, count = bounds[row], bounds[row + 1] - bounds[row]
        start = end - count
        head = min(max(num_sinks - start, 0), count)  # tokens that are sinks themselves
        if head:
            own.append(Segment(row, first, head, 0, start + head, True))
        if head == count:
            continue
        first, count, start = first + head, count - head, start + head
        first_key = max(num_sinks, start - window + 1, floor)
        is_cut = window != FULL_ATTENTION and end - window > first_key
        own.append(
            Segment(row, first, count, first_key, end - first_key, True, window if is_cut else None)
        )
        if num_sinks:
            sinks.append(Segment(row, first, count, 0, num_sinks, False))
    return own, sinks


def token_indices(segments: Sequence[Segment]) -> torch.Tensor:
    """The segments' tokens end to end, int64 [N], as indices into the batch."""
    return _runs([s.first_token for s in segments], [s.num_tokens for s in segments])


def key_slots(segments: Sequence[Segment], host: BatchTensors, block_size: int) -> torch.Tensor:
    """Slots of the segments' keys end to end, int64 [N]."""
    lengths = [s.num_keys for s in segments]
    positions = _runs([s.first_key for s in segments], lengths)
    rows = torch.repeat_interleave(torch.tensor([s.row for s in segments]), torch.tensor(lengths))
    blocks = _blocks(rows, positions // block_size, host, block_size)
    return blocks * block_size + positions % block_size


def block_tables(
    segments: Sequence[Segment], host: BatchTensors, block_size: int
) -> tuple[torch.Tensor, list[int]]:
    """The blocks of the segments' keys in the order of positions, and where in the first of them
    the keys begin.

    Returns:
        int32 [len(segments), width], padded with block 0; offsets below block_size.
    """
    first = torch.tensor([s.first_key // block_size for s in segments])
    last = torch.tensor([(s.first_key + s.num_keys - 1) // block_size for s in segments])
    columns = torch.arange(int((last - first).max()) + 1)
    logical = torch.minimum(first[:, None] + columns, last[:, None])
    rows = torch.tensor([s.row for s in segments])[:, None].expand_as(logical)
    blocks = _blocks(rows, logical, host, block_size)
    tables = torch.where(columns <= (last - first)[:, None], blocks, 0)
    return tables.to(torch.int32), [s.first_key % block_size for s in segments]


def _blocks(
    rows: torch.Tensor, logical: torch.Tensor, host: BatchTensors, block_size: int
) -> torch.Tensor:
    """Ids of the sequences' ``logical`` blocks: sink columns, then the ring."""
    num_sinks = (host.num_sink_tokens.long() + block_size - 1) // block_size
    sinks, ring = num_sinks[rows], host.ring_blocks.long()[rows]
    columns = torch.where(logical < sinks, logical, sinks + (logical - sinks) % ring)
    return host.block_table[rows, columns].long()


def _runs(starts: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    """The integers ``start, start + 1, ...`` of each run, end to end."""
    counts = torch.tensor(lengths, dtype=torch.int64)
    before = counts.cumsum(0) - counts
    shifts = torch.repeat_interleave(torch.tensor(starts, dtype=torch.int64) - before, counts)
    return torch.arange(len(shifts)) + shifts
