"""Ops around the model: a step's layout, its angles, what is sampled, and the next step's input."""

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


def rotary_table(positions: Tensor, inv_freq: Tensor, scaling: float) -> Tensor:
    """Cosines and sines of ``position * inv_freq``, times ``scaling``, computed in float64.

    Args:
        positions: int64 [T].
        inv_freq: float64 [rotary_dim / 2].

    Returns:
        float32 [T, rotary_dim], cosines then sines.
    """
    return ops.rotary_table.default(positions, inv_freq, scaling)


def sample_tokens(
    logits: Tensor,
    *,
    temperature: Tensor,
    min_p: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Sample one token per row; a row's is the same bits whatever rows stand beside it.

    A token's weight is ``exp((logit - largest) / temperature)`` in float64. Kept are the tokens
    whose weight is at least min_p and whose logit is at least the top_k-th largest; of these, in
    descending order (equal ones by id), those before which the others have not reached top_p of
    the weight yet. The kept tokens' cumulative distribution, by id, is inverted at a number that
    is a hash of seed and position.

    Args:
        logits: float32 [N, vocab], rows strided. A row whose largest logit is NaN or infinite
            gives the first index of it, at any temperature.
        temperature: float64 [N], 0 or in [1e-5, 1e30]. 0 takes the first of the largest logits.
        min_p: float64 [N], in [0, 1].
        top_k: int64 [N]; 0 and less keep all.
        top_p: float64 [N], in (0, 1].
        seeds: int64 [N]; so are ``positions``.

    Returns:
        int64 [N].
    """
    return ops.sample_tokens.default(logits, temperature, min_p, top_k, top_p, seeds, positions)


def advance_decode(
    sampled: Tensor,
    generated: Tensor,
    num_generated: Tensor,
    num_left: Tensor,
    stop_token_ids: Tensor,
    *,
    token_ids: Tensor,
    positions: Tensor,
    sink_positions: Tensor,
    seq_lens: Tensor,
    slot_mapping: Tensor,
    block_table: Tensor,
    num_sink_tokens: Tensor,
    window_size: Tensor,
    window_floor: Tensor,
    ring_blocks: Tensor,
    block_size: int,
) -> None:
    """Turn the tokens that a step of B decoding sequences has sampled into the next step's input.

    A row whose ``num_left`` is 0 is left alone. Any other one's token is added to ``generated``.
    If it is a stop token or the last that was left, ``num_left`` becomes 0, and only the slot of
    the row's input changes, to -1: it may be computed again, and writes nothing. Otherwise
    the token is the next input, a position further.

    Args:
        sampled: int64 [B].
        generated: int64 [B, max_generated], changed.
        num_generated: int64 [B], tokens in each row of ``generated``, changed.
        num_left: int64 [B], tokens that each row may still gain, changed.
        stop_token_ids: int64 [B, num_stops], -1 where a row has fewer.
        token_ids: int64 [B], the step's input, changed; so are ``positions``, ``sink_positions``,
            ``seq_lens`` and ``slot_mapping``, each as in `AttentionMetadata`.
        block_table: as in `AttentionMetadata`, and so is what follows. A column without a block
            gives slot -1.
    """
    ops.advance_decode.default(
        sampled,
        generated,
        num_generated,
        num_left,
        stop_token_ids,
        token_ids,
        positions,
        sink_positions,
        seq_lens,
        slot_mapping,
        block_table,
        num_sink_tokens,
        window_size,
        window_floor,
        ring_blocks,
        block_size,
    )
