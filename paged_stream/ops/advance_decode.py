"""From one decode step to the next."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.batch import BatchTensors
from paged_stream.ops.library import ops


def advance_decode(
    sampled: Tensor,
    generated: Tensor,
    num_generated: Tensor,
    num_left: Tensor,
    stop_token_ids: Tensor,
    batch: BatchTensors,
    block_size: int,
) -> None:
    """Turn the tokens that a step of B decoding sequences has sampled into the next step's input.

    A row whose ``num_left`` is 0 is left alone. Any other one's token is added to ``generated``.
    If it is a stop token or the last that was left, ``num_left`` becomes 0, and only the slot of
    the row's input changes, to -1: it may be computed again, and writes nothing. Otherwise
    the token is the next input, a position further.

    Args:
        sampled: int64 [B]; a row ends with `NO_TOKEN`, too.
        generated: int64 [B, max_generated], changed.
        num_generated: int64 [B], tokens in each row of ``generated``, changed.
        num_left: int64 [B], tokens that each row may still gain, changed.
        stop_token_ids: int64 [B, num_stops], -1 where a row has fewer.
        batch: the step's input, one token per sequence. Changed are ``token_ids``, ``positions``,
            ``sink_positions``, ``slot_mapping`` and ``seq_lens``. A column without a block gives
            slot -1.
        block_size: tokens per block.
    """
    ops.advance_decode.default(
        sampled, generated, num_generated, num_left, stop_token_ids, batch, block_size
    )
