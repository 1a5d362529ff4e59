"""Typed access to ``torch.ops.paged_stream``: one function per op.

Shapes: T tokens in the batch, B sequences, N slots. A cache is ``[num_blocks, num_kv_heads,
block_size, row_size]``, its inner three dimensions contiguous; ``slot = block_id * block_size +
offset``. Heads of one call share a dtype, float32 or bfloat16 (on CUDA also float16), and head_dim
is a multiple of 8 up to 256. The cache has the same dtype, and rows of head_dim elements; or it is
int8, and a row is head_dim elements and the 4 bytes of a float32, their scale; or, on CUDA, it is
float8_e4m3fn, and elements are rounded as they are, beyond 448 to that. Arguments that break a
contract raise RuntimeError naming the op, the argument, what was expected and what came. On CUDA
nothing waits for the device to look at numbers: slots and blocks that do not exist are skipped.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

try:
    from paged_stream import _C  # noqa: F401  (loading it registers the ops)
except ImportError as error:
    raise ImportError(
        "the op library paged_stream._C is missing or was built for another torch; build it with "
        "`pip install --no-build-isolation -e .` in the repository root"
    ) from error

from paged_stream import fake_kernels  # noqa: E402, F401  (for tracing; they need the ops)

_ops = torch.ops.paged_stream


def rotary_and_cache(
    query: Tensor,
    sink_query: Tensor | None,
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    rotary: Tensor,
    sink_rotary: Tensor | None,
    slot_mapping: Tensor,
    interleaved: bool = False,
) -> None:
    """Rotate queries and keys, and write keys and values to their slots, in one pass.

    For an int8 cache each head of a token is quantised by itself: scale = max |x| / 127, elements
    x / scale rounded to the nearest integer. Keys are quantised from their float32 rotations.

    Args:
        query: [T, num_heads, head_dim], rows strided; rotated in place by ``rotary``.
        sink_query: [T, num_heads, head_dim], written: the unrotated query turned by
            ``sink_rotary``. ``None`` when both rotations agree.
        key: [T, num_kv_heads, head_dim], rows strided, not modified; so is ``value``.
        k_cache: a cache, written; so is ``v_cache``.
        rotary: float32 [T, rotary_dim], cosines then sines at each token's position; rotary_dim
            is even, and 0 for models without rotary embedding.
        sink_rotary: the same at each token's position towards the sinks.
        slot_mapping: int64 [T]; -1 writes nothing.
        interleaved: rotate pairs (2i, 2i + 1), not (i, i + rotary_dim / 2).
    """
    _ops.rotary_and_cache.default(
        query,
        sink_query,
        key,
        value,
        k_cache,
        v_cache,
        rotary,
        sink_rotary,
        slot_mapping,
        interleaved,
    )


def paged_attention(
    query: Tensor,
    sink_query: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    num_sink_tokens: Tensor,
    window_size: Tensor,
    window_floor: Tensor,
    ring_blocks: Tensor,
    scale: float,
    alibi_slopes: Tensor | None = None,
    softcap: float | None = None,
    local_window: int | None = None,
) -> Tensor:
    """Attention of each token over the sinks and the window of its sequence.

    The token at position p sees the keys j < num_sink_tokens, through ``sink_query``, and
    p - window_size < j <= p that are not below window_floor, through ``query``. A local window
    narrows both to the last ``local_window`` of the keys that a sequence keeps; the block table
    does not depend on it. Keys and blocks that no token of a chunk sees are not touched, so slots
    and columns may hold anything there.

    Args:
        query: [T, num_heads, head_dim], rows strided; num_heads a multiple of num_kv_heads.
        sink_query: the same for sink keys, or ``None`` to use ``query`` for them too.
        k_cache: a cache that holds this step's keys already; so is ``v_cache``.
        block_table: int32 [B, width], sink columns, then the ring.
        query_start_loc: int32 [B + 1], where each sequence's chunk starts; it may be empty.
        seq_lens: int64 [B], length of each stream with its chunk.
        num_sink_tokens: int32 [B], 0 for full attention.
        window_size: int32 [B], the largest int32 for full attention.
        window_floor: int64 [B], first position behind the sinks whose key there is: from
            num_sink_tokens up to the chunk's first position; 0 for all, and for full attention.
        ring_blocks: int32 [B], columns of the ring.
        scale: factor on the scores.
        alibi_slopes: float32 [num_heads]; a score loses slope times the distance to its key, for
            sink keys measured from num_sink_tokens + p - max(num_sink_tokens, p - window_size + 1,
            window_floor), its place in a cache of what it sees.
        softcap: scaled scores s become softcap * tanh(s / softcap); not with ``alibi_slopes``.
        local_window: the layer's own sliding window L: of the sink keys only those at a distance
            below L are seen, measured in the same way, and of the others those with p - L < j.

    Returns:
        [T, num_heads, head_dim], contiguous, in the dtype of ``query``.
    """
    return _ops.paged_attention.default(
        query,
        sink_query,
        k_cache,
        v_cache,
        block_table,
        query_start_loc,
        seq_lens,
        num_sink_tokens,
        window_size,
        window_floor,
        ring_blocks,
        scale,
        alibi_slopes,
        softcap or 0.0,
        local_window or 0,
    )


def gather_blocks(
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    rotary: Tensor | None = None,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """Read the slots ``slot_mapping`` (int64 [N]) into contiguous keys and values.

    Args:
        rotary: float32 [N, rotary_dim], cosines then sines by which each key is turned on the way.

    Returns:
        key and value, both rows of the cache, [N, num_kv_heads, row_size]; zeros for slot -1.
    """
    return _ops.gather_blocks.default(k_cache, v_cache, slot_mapping, rotary, interleaved)


def scatter_blocks(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    rotary: Tensor | None = None,
    interleaved: bool = False,
) -> None:
    """Write keys and values, rows of the cache, [N, num_kv_heads, row_size], to their slots; -1
    writes nothing.

    Args:
        slot_mapping: int64 [N]; no slot may be named twice.
        rotary: float32 [N, rotary_dim], cosines then sines by which each key is turned on the way.
    """
    _ops.scatter_blocks.default(key, value, k_cache, v_cache, slot_mapping, rotary, interleaved)


def rotary_reindex(
    k_cache: Tensor, slot_mapping: Tensor, rotary: Tensor, interleaved: bool = False
) -> None:
    """Turn the cached keys at ``slot_mapping`` (int64 [N]) in place; -1 is skipped.

    Keys in int8 are quantised again: each turn rounds once more, by at most half a scale.

    Args:
        slot_mapping: int64 [N]; no slot may be named twice.
        rotary: float32 [N, rotary_dim], cosines then sines of the angle to turn each key by.
    """
    _ops.rotary_reindex.default(k_cache, slot_mapping, rotary, interleaved)


def copy_blocks(kv_cache: Tensor, block_mapping: Tensor) -> None:
    """Copy whole blocks, keys and values of every layer.

    Args:
        kv_cache: [num_layers, 2, num_blocks, num_kv_heads, block_size, row_size], contiguous.
        block_mapping: int64 [n, 2], pairs (source, destination). A block may be the source of
            several pairs, but the destination of one at most, and never both.
    """
    _ops.copy_blocks.default(kv_cache, block_mapping)


def pack_linear_weight(weight: Tensor) -> Tensor:
    """Lay a weight out for `linear`.

    Args:
        weight: [out_features, in_features], float32 or bfloat16; in_features is even for the
            latter.

    Returns:
        [ceil(out_features / 16), in_features / step, 16, step], where ``step`` elements make 4
        bytes; rows beyond out_features are zero.
    """
    return _ops.pack_linear_weight.default(weight)


def pack_quantized_weight(blocks: Tensor, format: str) -> Tensor:
    """Lay a weight in GGUF blocks out for `linear`, without changing a number.

    Args:
        blocks: uint8 [out_features, in_features / 32 * block_bytes], rows as GGUF files hold them.
        format: ``"Q4_0"`` (18 bytes: float16 scale, 32 codes), ``"Q4_1"`` (20 bytes: scale, min,
            codes) or ``"Q8_0"`` (34 bytes).

    Returns:
        uint8 [panels, in_features / 32, 16 * block_bytes], out_features padded to panels of 16.
    """
    return _ops.pack_quantized_weight.default(blocks, format)


def linear(
    input: Tensor,
    packed_weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    float_output: bool = False,
) -> Tensor:
    """Compute ``input W^T + bias``, accumulating in float32 in the order of in_features.

    A row's result is the same, bit for bit, whatever rows stand beside it. A quantised weight
    multiplies an input that is rounded to 15-bit integers first, each 32 elements of a row with
    their own scale; the products of a block are then summed as integers, exactly.

    Args:
        input: [T, in_features], rows strided, in the weight's dtype; float32 or bfloat16 if the
            weight is quantised.
        packed_weight: from `pack_linear_weight` or `pack_quantized_weight`.
        bias: [out_features], or ``None``.
        float_output: return the float32 sums unrounded.

    Returns:
        [T, out_features] in the dtype of ``input``, or float32.
    """
    return _ops.linear.default(input, packed_weight, bias, out_features, float_output)


def add_rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add ``delta`` to the residual stream in place, and normalise: ``x / rms(x) * weight``.

    Args:
        residual: [T, dim], contiguous; changed when there is a delta.
        delta: [T, dim], contiguous, or ``None``.
        weight: float32 [dim], whatever the dtype of ``residual``.
        eps: added to the mean square.

    Returns:
        [T, dim], computed in float32 and rounded once.
    """
    return _ops.add_rms_norm.default(residual, delta, weight, eps)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Compute ``silu(gate) * up`` from [T, 2 * dim], contiguous, gate first.

    Returns:
        [T, dim], computed in float32 and rounded once.
    """
    return _ops.silu_and_mul.default(gate_up)


class AttentionBlock(NamedTuple):
    """What a layer's attention block is made of; weights are packed, of [Q, K, V] rows and of dim
    rows. The rest is as in `rotary_and_cache` and `paged_attention`."""

    norm_weight: Tensor
    eps: float
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    output_weight: Tensor
    output_bias: Tensor | None
    num_heads: int
    interleaved: bool
    scale: float
    alibi_slopes: Tensor | None
    softcap: float | None
    local_window: int | None


def attention_block(
    residual: Tensor,
    delta: Tensor | None,
    block: AttentionBlock,
    rotary: Tensor,
    sink_rotary: Tensor | None,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    num_sink_tokens: Tensor,
    window_size: Tensor,
    window_floor: Tensor,
    ring_blocks: Tensor,
) -> Tensor:
    """Compute ``output(attention(qkv(x)))`` of ``x = add_rms_norm(residual, delta)``: the same bits
    as op by op.

    Args:
        residual: [T, dim], contiguous; changed when there is a delta, of the same shape.
        rotary: as in `rotary_and_cache`, and so are ``sink_rotary`` and ``slot_mapping``.
        k_cache: a cache, in which the step's keys are written and then read; so is ``v_cache``.
        block_table: as in `paged_attention`, and so is what follows.

    Returns:
        [T, dim] in the dtype of ``residual``.
    """
    return _ops.attention_block.default(
        residual,
        delta,
        block.norm_weight,
        block.eps,
        block.qkv_weight,
        block.qkv_bias,
        block.output_weight,
        block.output_bias,
        block.num_heads,
        rotary,
        sink_rotary,
        block.interleaved,
        k_cache,
        v_cache,
        slot_mapping,
        block_table,
        query_start_loc,
        seq_lens,
        num_sink_tokens,
        window_size,
        window_floor,
        ring_blocks,
        block.scale,
        block.alibi_slopes,
        block.softcap or 0.0,
        block.local_window or 0,
    )


class GatedMLP(NamedTuple):
    """What a layer's gated feed-forward block is made of.

    Args:
        norm_weight: float32 [dim].
        up_weight: packed, of 2 * intermediate_size outputs: the gate's, then those of up.
        down_weight: packed, of dim outputs.
    """

    norm_weight: Tensor
    eps: float
    up_weight: Tensor
    up_bias: Tensor | None
    down_weight: Tensor
    down_bias: Tensor | None
    intermediate_size: int


def gated_mlp(residual: Tensor, delta: Tensor | None, block: GatedMLP) -> Tensor:
    """Compute ``down(silu(gate(x)) * up(x))`` of ``x = add_rms_norm(residual, delta)``: the same
    bits as op by op.

    Args:
        residual: [T, dim], contiguous; changed when there is a delta, of the same shape.

    Returns:
        [T, dim] in the dtype of ``residual``.
    """
    return _ops.gated_mlp.default(residual, delta, *block)


class DecoderLayers:
    """The blocks of all layers, checked and laid out for `decoder_layers`.

    Args:
        attention: one per layer, alike in all but weights and local windows.
        mlp: one per layer, alike in all but weights.
        layer_rotary: which of a step's rotary tables each layer takes.
        num_kv_heads: of the cache, and so is ``head_dim``.
        dtype: of the residual stream, float32 or bfloat16.
    """

    def __init__(
        self,
        attention: list[AttentionBlock],
        mlp: list[GatedMLP],
        layer_rotary: list[int],
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
    ) -> None:
        first = attention[0]
        self.handle: int = _ops.lay_out_layers.default(
            [block.norm_weight for block in attention],
            [block.qkv_weight for block in attention],
            _present([block.qkv_bias for block in attention]),
            [block.output_weight for block in attention],
            _present([block.output_bias for block in attention]),
            [block.norm_weight for block in mlp],
            [block.up_weight for block in mlp],
            _present([block.up_bias for block in mlp]),
            [block.down_weight for block in mlp],
            _present([block.down_bias for block in mlp]),
            first.eps,
            first.num_heads,
            num_kv_heads,
            head_dim,
            mlp[0].intermediate_size,
            first.interleaved,
            first.scale,
            first.alibi_slopes,
            first.softcap or 0.0,
            [block.local_window or 0 for block in attention],
            layer_rotary,
            dtype == torch.bfloat16,
        )
        weakref.finalize(self, _ops.free_layers.default, self.handle)


def _present(biases: list[Tensor | None]) -> list[Tensor]:
    """All layers' biases, or none."""
    present = [bias for bias in biases if bias is not None]
    assert len(present) in (0, len(biases))
    return present


def decoder_layers(
    residual: Tensor,
    layers: DecoderLayers,
    rotary: list[Tensor],
    sink_rotary: list[Tensor],
    k_caches: Sequence[Tensor],
    v_caches: Sequence[Tensor],
    slot_mapping: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    num_sink_tokens: Tensor,
    window_size: Tensor,
    window_floor: Tensor,
    ring_blocks: Tensor,
) -> Tensor:
    """Run ``attention_block`` and ``gated_mlp`` of one layer after the other: the same bits.

    Args:
        residual: [T, dim], contiguous; changed.
        rotary: the tables that ``layers`` names, as in `rotary_and_cache`; so are ``sink_rotary``,
            as many or none, and ``slot_mapping``.
        k_caches: one per layer, of the same shape, in which the step's keys are written and then
            read; so are ``v_caches``.
        block_table: as in `paged_attention`, and so is what follows.

    Returns:
        [T, dim] in the dtype of ``residual``: what the last layer adds to it.
    """
    return _ops.decoder_layers.default(
        residual,
        layers.handle,
        rotary,
        sink_rotary,
        k_caches,
        v_caches,
        slot_mapping,
        block_table,
        query_start_loc,
        seq_lens,
        num_sink_tokens,
        window_size,
        window_floor,
        ring_blocks,
    )


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
    layout = _ops.lay_out_batch.default(
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
    return _ops.rotary_table.default(positions, inv_freq, scaling)


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
    return _ops.sample_tokens.default(logits, temperature, min_p, top_k, top_p, seeds, positions)


def has_cuda() -> bool:
    """Whether the op library was built with its CUDA kernels."""
    name = "paged_stream::paged_attention"
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")


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
    _ops.advance_decode.default(
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


def cpu_isa() -> str:
    """The instruction set of the CPU kernels in use: "avx512vnni", "avx512", "avxvnni", "avx2" or
    "generic"."""
    return _ops.cpu_isa.default()


def set_cpu_isa(name: str) -> None:
    """Use the kernels of another instruction set; for tests and benchmarks.

    Raises:
        RuntimeError: this machine does not have it.
    """
    _ops.set_cpu_isa.default(name)
