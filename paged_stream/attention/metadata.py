"""What every attention layer of one step needs to know; built once per step, passed as argument."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMetadata:
    """One step's batch of B sequences and T tokens, as the attention ops take it.

    Args:
        query_start_loc: int32 [B + 1], cumulative chunk lengths.
        seq_lens: int64 [B], length of each stream including its chunk.
        num_sink_tokens: int32 [B], 0 for full attention.
        window_size: int32 [B], the largest int32 for full attention.
        window_floor: int64 [B], first position behind the sinks whose key there is, 0 for all.
        block_table: int32 [B, width], rows padded with -1.
        ring_blocks: int32 [B], ring columns of each row.
        slot_mapping: int64 [T], where each token's K and V go; -1 skips.
        positions: int64 [T], of each token in its stream.
        sink_positions: int64 [T], its position towards the sinks; ``None`` when no key between the
            sinks and any token has gone, so that both agree.
        host: the same on the host, for backends that plan there; ``None`` on the CPU.
    """

    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    num_sink_tokens: torch.Tensor
    window_size: torch.Tensor
    window_floor: torch.Tensor
    block_table: torch.Tensor
    ring_blocks: torch.Tensor
    slot_mapping: torch.Tensor
    positions: torch.Tensor
    sink_positions: torch.Tensor | None
    host: AttentionMetadata | None = None
