"""The attention half of a layer: the same bits as its parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from paged_stream import ops
from tests.ops.batches import make_batch, sequence
from tests.ops.test_gated_mlp import EPS, packed

HEAD_DIM, HEADS, KV_HEADS, DIM, BLOCK_SIZE = 16, 6, 2, 64, 8
QKV_SIZE = (HEADS + 2 * KV_HEADS) * HEAD_DIM
CHUNKS = [
    (4, 40, 4_000_037, 1),
    (4, 40, 30, 30),
    (7, 20, 500, 45),
    (0, None, 70, 3),
    (0, 50, 77, 0),
]


@dataclass
class Problem:
    """The op's arguments, before they are laid out."""

    residual: torch.Tensor
    delta: torch.Tensor | None
    weights: ops.AttentionWeights
    scoring: ops.Scoring
    rotary: torch.Tensor
    sink_rotary: torch.Tensor | None
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    batch: ops.BatchTensors
    num_heads: int = HEADS

    def layer(self, dtype: torch.dtype | None = None) -> ops.AttentionLayer:
        return ops.AttentionLayer(
            self.weights,
            ops.HeadShape(self.num_heads, KV_HEADS, HEAD_DIM),
            self.scoring,
            eps=EPS,
            interleaved=False,
            dtype=dtype or self.residual.dtype,
        )

    def step(self) -> tuple:
        """What an op is given behind the layer."""
        return self.rotary, self.sink_rotary, self.k_cache, self.v_cache, self.batch

    def run(self, layer: ops.AttentionLayer | None = None) -> torch.Tensor:
        return ops.attention_layer(self.residual, self.delta, layer or self.layer(), *self.step())

    def op_by_op(self) -> torch.Tensor:
        weights, batch, caches = self.weights, self.batch, (self.k_cache, self.v_cache)
        normed = ops.add_rms_norm(self.residual, self.delta, weights.norm, EPS)
        qkv = ops.linear(normed, weights.qkv, weights.qkv_bias, QKV_SIZE)
        heads = qkv.view(len(qkv), -1, HEAD_DIM)
        query, key, value = heads.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        sink_query = None if self.sink_rotary is None else query.contiguous()
        tables = self.rotary, self.sink_rotary
        ops.rotary_and_cache(
            query, sink_query, key, value, *caches, *tables, batch.slot_mapping, False
        )
        context = ops.paged_attention(query, sink_query, *caches, batch, self.scoring)
        return ops.linear(context.flatten(1), weights.output, weights.output_bias, DIM)

    def copy(self) -> Problem:
        """With a residual stream and caches of its own."""
        own = {name: getattr(self, name).clone() for name in ("residual", "k_cache", "v_cache")}
        return replace(self, **own)


def problem(
    kind: str = "plain",
    dtype: torch.dtype = torch.bfloat16,
    cache_dtype: torch.dtype | None = None,
    *,
    bias: bool = True,
    **layer: Any,
) -> Problem:
    paged = make_batch(
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

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    num_tokens = sum(s.chunk for s in paged.sequences)
    weights = ops.AttentionWeights(
        norm=torch.rand(DIM, generator=generator),
        qkv=packed(QKV_SIZE, DIM, kind, dtype, 1),
        qkv_bias=values(QKV_SIZE) if bias else None,
        output=packed(DIM, HEADS * HEAD_DIM, kind, dtype, 2),
        output_bias=values(DIM) if bias else None,
    )
    rotary, sink_rotary = torch.rand(2, num_tokens, HEAD_DIM, generator=generator)
    return Problem(
        values(num_tokens, DIM),
        values(num_tokens, DIM),
        weights,
        paged.scoring(),
        rotary,
        sink_rotary,
        paged.k_cache,
        paged.v_cache,
        paged.tensors(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
@pytest.mark.parametrize("kind", ["plain", "Q4_1"])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "local_window": 9}, {"with_alibi": True}])
@pytest.mark.parametrize("grown", [False, True])
def test_equals_its_parts(dtype, cache_dtype, kind, options, grown):
    mine = problem(kind, dtype, cache_dtype, bias=grown, **options)
    if not grown:
        mine.delta = mine.sink_rotary = None  # sinks are as far away as they were
    parts = mine.copy()
    expected, result = parts.op_by_op(), mine.run()
    assert result.isfinite().all()
    assert torch.equal(result, expected)
    assert torch.equal(mine.residual, parts.residual)
    for cache in ("k_cache", "v_cache"):  # NaN where nothing was written
        written, wanted = getattr(mine, cache), getattr(parts, cache)
        assert torch.equal(written.nan_to_num(7), wanted.nan_to_num(7))


def without_tokens(batch: ops.BatchTensors) -> ops.BatchTensors:
    """The sequences with empty chunks."""
    per_token = ("token_ids", "positions", "sink_positions", "slot_mapping")
    empty = {name: getattr(batch, name)[:0] for name in per_token}
    return batch._replace(**empty, query_start_loc=torch.zeros_like(batch.query_start_loc))


def test_no_tokens():
    mine = problem()
    assert mine.delta is not None and mine.sink_rotary is not None
    empty = replace(
        mine,
        residual=mine.residual[:0],
        delta=mine.delta[:0],
        rotary=mine.rotary[:0],
        sink_rotary=mine.sink_rotary[:0],
        batch=without_tokens(mine.batch),
    )
    assert empty.run().shape == (0, DIM)


def test_opcheck():
    mine = problem(dtype=torch.float32)
    layer = mine.layer()
    *step, batch = mine.step()
    torch.library.opcheck(
        torch.ops.paged_stream.attention_layer.default,
        (mine.residual, mine.delta, layer.handle, *step, list(batch)),
    )


def test_weights_are_checked_when_they_are_laid_out():
    def refuses(message, *, num_heads=HEADS, scoring=None, **changes):
        mine = problem()
        weights = mine.weights._replace(**changes)
        scoring = mine.scoring._replace(**scoring or {})
        with pytest.raises(RuntimeError, match="lay_out_attention_layer: " + message):
            replace(mine, weights=weights, num_heads=num_heads, scoring=scoring).layer()

    bfloat16 = torch.bfloat16
    refuses("packed_weight must have shape", num_heads=8)
    refuses("num_heads must be a multiple of num_kv_heads 2, got 5", num_heads=5)
    refuses(
        "in_features of qkv_weight must be 64 and of output_weight 96, got 32 and",
        qkv=packed(QKV_SIZE, 32, "plain", bfloat16, 1),
    )
    refuses("packed_weight must have shape", output=packed(32, 96, "plain", bfloat16, 1))
    refuses("weight must be Float", norm=torch.zeros(DIM).bfloat16())
    refuses(r"weights\[1\] must be a tensor, got None", qkv=None)
    both = {"softcap": 3.0, "alibi_slopes": torch.ones(HEADS)}
    refuses("softcap and alibi_slopes must not both be given", scoring=both)
    with pytest.raises(RuntimeError, match="input must be BFloat16, got Float"):
        problem().layer(torch.float32)


@pytest.mark.parametrize(
    "heads, message",
    [
        # With head_dim 16, their product is that of 4 heads in 64 bits.
        ((2**60 + 4, 2, 16), "num_heads must be in"),
        ((4, 0, 16), "num_kv_heads must be in .*, got 0"),
        ((4, -1, 16), "num_kv_heads must be in .*, got -1"),
        ((4, 2, -16), "head_dim must be a multiple of 8 from 8 to 256, got -16"),
        ((4, 2, 2**60 + 16), "head_dim must be a multiple of 8 from 8 to 256"),
    ],
)
def test_heads_out_of_range(heads, message):
    dtype = torch.float32
    qkv, output = packed(128, 64, "plain", dtype, 1), packed(64, 64, "plain", dtype, 2)
    weights = ops.AttentionWeights(torch.ones(64), qkv, None, output, None)
    ops.AttentionLayer(
        *(weights, ops.HeadShape(4, 2, 16), ops.Scoring(1.0)),
        eps=EPS,
        interleaved=False,
        dtype=dtype,
    )
    with pytest.raises(RuntimeError, match="lay_out_attention_layer: " + message):
        ops.AttentionLayer(
            *(weights, ops.HeadShape(*heads), ops.Scoring(1.0)),
            eps=EPS,
            interleaved=False,
            dtype=dtype,
        )


def test_what_a_step_brings_is_checked():
    def refuses(message, **changes):
        mine = problem()
        for name, value in changes.items():
            if name in mine.batch._fields:
                mine.batch = mine.batch._replace(**{name: value})
            else:
                setattr(mine, name, value)
        with pytest.raises(RuntimeError, match="attention_layer: " + message):
            mine.run(problem().layer())

    refuses("delta must have the shape of residual", delta=torch.zeros(2, DIM).bfloat16())
    refuses("slot_mapping must have shape", slot_mapping=torch.zeros(3, dtype=torch.int64))
    refuses("rotary must have shape", rotary=torch.zeros(3, HEAD_DIM))
    refuses("k_cache must be BFloat16, got Float", **float_caches(problem()))
    heads = {name: getattr(problem(), name)[:, :1] for name in ("k_cache", "v_cache")}
    refuses("k_cache must have 2 heads with head_dim 16, got 1 with 16", **heads)
    refuses("query_start_loc must run from 0 to 79", query_start_loc=torch.zeros(6).int())
    unknown = torch.full_like(problem().batch.block_table, 10**6)
    refuses("block_table column 0, for position 0, must be a block id", block_table=unknown)


def float_caches(mine: Problem) -> dict[str, torch.Tensor]:
    return {name: getattr(mine, name).float() for name in ("k_cache", "v_cache")}
