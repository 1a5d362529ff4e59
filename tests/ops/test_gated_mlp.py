"""The fused feed-forward block: the same bits as its parts."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from paged_stream import ops
from paged_stream.layers.blocks import Blocks, pack_blocks

EPS, INTERMEDIATE = 1e-5, 96
WEIGHTS = ["plain", "Q4_1", "Q8_0"]


def packed(out_features, in_features, kind, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator) * 0.1
    if kind == "plain":
        return ops.pack_linear_weight(weight.to(dtype))
    blocks = quantize(weight.numpy(), GGMLQuantizationType[kind])
    return pack_blocks([Blocks(kind, torch.from_numpy(blocks))])


def problem(rows, kind="plain", dtype=torch.bfloat16, *, bias=True, dim=64):
    generator = torch.Generator().manual_seed(0)

    def values(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    weights = ops.MLPWeights(
        norm=torch.rand(dim, generator=generator),
        up=packed(2 * INTERMEDIATE, dim, kind, dtype, 1),
        up_bias=values(2 * INTERMEDIATE) if bias else None,
        down=packed(dim, INTERMEDIATE, kind, dtype, 2),
        down_bias=values(dim) if bias else None,
    )
    return values(rows, dim), values(rows, dim), weights


def lay_out(weights: ops.MLPWeights, dtype=torch.bfloat16) -> ops.GatedMLP:
    return ops.GatedMLP(weights, eps=EPS, dtype=dtype)


def op_by_op(residual, delta, weights: ops.MLPWeights):
    normed = ops.add_rms_norm(residual, delta, weights.norm, EPS)
    activated = ops.silu_and_mul(ops.linear(normed, weights.up, weights.up_bias, 2 * INTERMEDIATE))
    return ops.linear(activated, weights.down, weights.down_bias, residual.shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5, 70])
@pytest.mark.parametrize("has_delta", [False, True])
def test_equals_its_parts(dtype, kind, bias, rows, has_delta):
    residual, delta, weights = problem(rows, kind, dtype, bias=bias)
    delta = delta if has_delta else None
    expected_residual = residual.clone()
    expected = op_by_op(expected_residual, delta, weights)
    result = ops.gated_mlp(residual, delta, lay_out(weights, dtype))
    assert torch.equal(result, expected)
    assert torch.equal(residual, expected_residual)


def test_opcheck():
    residual, delta, weights = problem(3)
    mlp = lay_out(weights)
    torch.library.opcheck(torch.ops.paged_stream.gated_mlp.default, (residual, delta, mlp.handle))


def test_a_freed_handle_is_refused():
    residual, delta, weights = problem(3)
    handle = lay_out(weights).handle
    with pytest.raises(RuntimeError, match="mlp must be a handle from lay_out_gated_mlp"):
        torch.ops.paged_stream.gated_mlp.default(residual, delta, handle)


def test_misuse_is_explained():
    residual, delta, weights = problem(3)

    def refuses(message, **changes):
        with pytest.raises(RuntimeError, match=message):
            lay_out(weights._replace(**changes))

    bfloat16 = torch.bfloat16
    refuses("weight must be Float", norm=torch.zeros(64).bfloat16())
    refuses(
        "in_features of gate_up_weight must be 64, got 32", up=packed(192, 32, "plain", bfloat16, 1)
    )
    refuses("input must be Float, got BFloat16", up=packed(192, 64, "plain", torch.float32, 1))
    refuses("packed_weight must have shape", down=packed(32, 96, "plain", bfloat16, 1))
    refuses("packed_weight must have shape", down=packed(64, 80, "plain", bfloat16, 1))
    refuses(r"weights\[3\] must be a tensor, got None", down=None)
    mlp = lay_out(weights)
    with pytest.raises(RuntimeError, match="delta must have the shape of residual"):
        ops.gated_mlp(residual, torch.zeros(1, 64).bfloat16(), mlp)
    with pytest.raises(RuntimeError, match=r"residual must have shape \[T, dim\] = \[\*, 64\]"):
        ops.gated_mlp(residual[:, :32], None, mlp)
