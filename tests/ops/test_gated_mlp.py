"""The fused feed-forward block: the same bits as its parts."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from paged_stream import ops

WEIGHTS = ["plain", "Q4_1", "Q8_0"]


def packed(out_features, in_features, kind, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=generator) * 0.1
    if kind == "plain":
        return ops.pack_linear_weight(weight.to(dtype))
    blocks = quantize(weight.numpy(), GGMLQuantizationType[kind])
    return ops.pack_quantized_weight(torch.from_numpy(blocks), kind)


def problem(rows, kind="plain", dtype=torch.bfloat16, *, bias=True, dim=64, intermediate=96):
    generator = torch.Generator().manual_seed(0)

    def values(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    return [
        values(rows, dim),
        values(rows, dim),
        torch.rand(dim, generator=generator),
        1e-5,
        packed(2 * intermediate, dim, kind, dtype, 1),
        values(2 * intermediate) if bias else None,
        packed(dim, intermediate, kind, dtype, 2),
        values(dim) if bias else None,
        intermediate,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 5, 70])
@pytest.mark.parametrize("has_delta", [False, True])
def test_equals_its_parts(dtype, kind, bias, rows, has_delta):
    arguments = problem(rows, kind, dtype, bias=bias)
    residual, delta, norm_weight, eps, up, up_bias, down, down_bias, intermediate = arguments
    delta = arguments[1] = delta if has_delta else None
    expected_residual = residual.clone()
    normed = ops.add_rms_norm(expected_residual, delta, norm_weight, eps)
    activated = ops.silu_and_mul(ops.linear(normed, up, up_bias, 2 * intermediate))
    expected = ops.linear(activated, down, down_bias, residual.shape[1])
    result = ops.gated_mlp(residual, delta, ops.GatedMLP(*arguments[2:]))
    assert torch.equal(result, expected)
    assert torch.equal(residual, expected_residual)


def test_opcheck():
    torch.library.opcheck(torch.ops.paged_stream.gated_mlp.default, tuple(problem(3)))


def test_misuse_is_explained():
    def refuses(index, value, message):
        arguments = problem(3)
        arguments[index] = value
        with pytest.raises(RuntimeError, match=message):
            ops.gated_mlp(*arguments[:2], ops.GatedMLP(*arguments[2:]))

    refuses(1, torch.zeros(2, 64).bfloat16(), "delta must have shape of residual")
    refuses(2, torch.zeros(64).bfloat16(), "weight must be Float")
    refuses(4, packed(192, 32, "plain", torch.bfloat16, 1), "up_weight must take 64 inputs")
    refuses(4, packed(192, 64, "plain", torch.float32, 1), "input must be Float, got BFloat16")
    refuses(6, packed(32, 96, "plain", torch.bfloat16, 1), "packed_weight must have shape")
    refuses(8, 80, "packed_weight must have shape")
