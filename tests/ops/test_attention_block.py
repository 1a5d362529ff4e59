"""The fused attention block: the same bits as its parts."""

from __future__ import annotations

import pytest
import torch

from paged_stream import ops
from tests.ops.batches import make_batch, sequence
from tests.ops.test_gated_mlp import packed

HEAD_DIM, HEADS, KV_HEADS, DIM, BLOCK_SIZE = 16, 6, 2, 64, 8
CHUNKS = [
    (4, 40, 4_000_037, 1),
    (4, 40, 30, 30),
    (7, 20, 500, 45),
    (0, None, 70, 3),
    (0, 50, 77, 0),
]


def slots_of(batch) -> torch.Tensor:
    """Where the keys of the sequences' chunks go."""
    slots = []
    for row, s in zip(batch.block_table.tolist(), batch.sequences, strict=True):
        for position in range(s.seq_len - s.chunk, s.seq_len):
            block, offset = divmod(position, BLOCK_SIZE)
            column = s.window.column(block, s.ring_blocks(BLOCK_SIZE), BLOCK_SIZE)
            slots.append(row[column] * BLOCK_SIZE + offset)
    return torch.tensor(slots, dtype=torch.int64)


def problem(kind="plain", dtype=torch.bfloat16, cache_dtype=None, *, bias=True, **layer):
    """The op's arguments: residual, delta, block, and what depends on the step."""
    batch = make_batch(
        [sequence(*sizes) for sizes in CHUNKS],
        num_kv_heads=KV_HEADS,
        group=HEADS // KV_HEADS,
        head_dim=HEAD_DIM,
        block_size=BLOCK_SIZE,
        dtype=dtype,
        cache_dtype=cache_dtype,
        **layer,
    )
    generator = torch.Generator().manual_seed(1)

    def values(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    num_tokens = sum(s.chunk for s in batch.sequences)
    qkv_size = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    block = ops.AttentionBlock(
        norm_weight=torch.rand(DIM, generator=generator),
        eps=1e-5,
        qkv_weight=packed(qkv_size, DIM, kind, dtype, 1),
        qkv_bias=values(qkv_size) if bias else None,
        output_weight=packed(DIM, HEADS * HEAD_DIM, kind, dtype, 2),
        output_bias=values(DIM) if bias else None,
        num_heads=HEADS,
        interleaved=False,
        scale=batch.scale,
        alibi_slopes=batch.alibi_slopes,
        softcap=batch.softcap,
        local_window=batch.local_window,
    )
    angles = torch.rand(2, num_tokens, HEAD_DIM, generator=generator)
    step = [*angles, batch.k_cache, batch.v_cache, slots_of(batch), *batch.arguments()[4:11]]
    return [values(num_tokens, DIM), values(num_tokens, DIM), block, *step]


def op_by_op(residual, delta, block, rotary, sink_rotary, k_cache, v_cache, slots, *batch):
    normed = ops.add_rms_norm(residual, delta, block.norm_weight, block.eps)
    qkv_size = (HEADS + 2 * KV_HEADS) * HEAD_DIM
    qkv = ops.linear(normed, block.qkv_weight, block.qkv_bias, qkv_size)
    heads = qkv.view(len(qkv), -1, HEAD_DIM)
    query, key, value = heads.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    sink_query = None if sink_rotary is None else query.contiguous()
    ops.rotary_and_cache(
        *(query, sink_query, key, value, k_cache, v_cache, rotary, sink_rotary, slots),
        block.interleaved,
    )
    context = ops.paged_attention(
        *(query, sink_query, k_cache, v_cache, *batch),
        *(block.scale, block.alibi_slopes, block.softcap, block.local_window),
    )
    return ops.linear(context.flatten(1), block.output_weight, block.output_bias, DIM)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
@pytest.mark.parametrize("kind", ["plain", "Q4_1"])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "local_window": 9}, {"with_alibi": True}])
@pytest.mark.parametrize("grown", [False, True])
def test_equals_its_parts(dtype, cache_dtype, kind, options, grown):
    arguments = problem(kind, dtype, cache_dtype, bias=grown, **options)
    if not grown:
        arguments[1] = arguments[4] = None  # no delta; sinks are as far away as they were
    copies = [x.clone() if torch.is_tensor(x) else x for x in arguments]
    expected, result = op_by_op(*copies), ops.attention_block(*arguments)
    assert result.isfinite().all()
    assert torch.equal(result, expected)
    for index in (0, 5, 6):  # the residual and the cache, NaN where nothing was written
        assert torch.equal(arguments[index].nan_to_num(7), copies[index].nan_to_num(7))


def test_no_tokens():
    arguments = problem()
    starts = torch.zeros_like(arguments[9])
    empty = [x[:0] if torch.is_tensor(x) else x for x in arguments[:5]]
    rest = [*arguments[5:7], arguments[7][:0], arguments[8], starts, *arguments[10:]]
    assert ops.attention_block(*empty, *rest).shape == (0, DIM)


def flattened(residual, delta, block, rotary, sink_rotary, k_cache, v_cache, *rest):
    layer = (block.scale, block.alibi_slopes, block.softcap or 0.0, block.local_window or 0)
    weights = (residual, delta, *block[:7])
    return (*weights, rotary, sink_rotary, block.interleaved, k_cache, v_cache, *rest, *layer)


def test_opcheck():
    library = torch.ops.paged_stream
    torch.library.opcheck(library.attention_block.default, flattened(*problem(dtype=torch.float32)))


def test_misuse_is_explained():
    def refuses(message, index=None, value=None, **changes):
        arguments = problem()
        arguments[2] = arguments[2]._replace(**changes)
        if index is not None:
            arguments[index] = value
        with pytest.raises(RuntimeError, match=message):
            ops.attention_block(*arguments)

    bfloat16 = torch.bfloat16
    refuses("packed_weight must have shape", num_heads=5)
    refuses("qkv_weight must take 64 inputs", qkv_weight=packed(160, 32, "plain", bfloat16, 1))
    refuses("packed_weight must have shape", output_weight=packed(32, 96, "plain", bfloat16, 1))
    refuses("weight must be Float", norm_weight=torch.zeros(DIM).bfloat16())
    refuses("delta must have shape of residual", 1, torch.zeros(2, DIM).bfloat16())
    refuses("slot_mapping must have shape", 7, torch.zeros(3, dtype=torch.int64))
    refuses("rotary must have shape", 3, torch.zeros(3, HEAD_DIM))
    refuses("softcap and alibi_slopes", softcap=3.0, alibi_slopes=torch.ones(HEADS))
