"""Fused row-wise ops against float64, on every instruction set, with odd row lengths."""

from __future__ import annotations

import pytest
import torch

from paged_stream import ops

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 8e-3, "atol": 1e-6},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 16, 33, 576])
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_add_rms_norm(isa, dtype, dim, rows):
    torch.manual_seed(0)
    residual, delta = torch.randn(2, rows, dim).to(dtype)
    weight = 1 + torch.randn(dim)  # float32, whatever the stream's dtype
    for added in (None, delta):
        stream = residual.clone()
        result = ops.add_rms_norm(stream, added, weight, 1e-5)
        expected = residual if added is None else residual + delta  # rounded to the dtype
        assert torch.equal(stream, expected)
        exact = expected.double()
        exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
        torch.testing.assert_close(result.double(), exact, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 16, 33, 1536])
def test_silu_and_mul(isa, dtype, dim):
    torch.manual_seed(0)
    gate_up = (torch.randn(5, 2 * dim) * 8).to(dtype)
    gate_up[0, 0], gate_up[1, 0], gate_up[2, 0] = 0.0, 300.0, -300.0
    gate, up = gate_up.double().chunk(2, dim=-1)
    expected = gate / (1 + torch.exp(-gate)) * up
    torch.testing.assert_close(ops.silu_and_mul(gate_up).double(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    library = torch.ops.paged_stream
    x, weight = torch.randn(3, 24).to(dtype), torch.randn(24)
    for delta in (None, x.clone()):
        torch.library.opcheck(library.add_rms_norm.default, (x.clone(), delta, weight, 1e-6))
    torch.library.opcheck(library.silu_and_mul.default, (x,))


def test_misuse_is_explained():
    x, weight = torch.randn(3, 24), torch.randn(24)
    with pytest.raises(RuntimeError, match="delta must have the shape of residual"):
        ops.add_rms_norm(x, x[:2], weight, 1e-6)
    with pytest.raises(RuntimeError, match="weight must be Float"):
        ops.add_rms_norm(x.bfloat16(), None, weight.bfloat16(), 1e-6)
    with pytest.raises(RuntimeError, match="residual must be contiguous"):
        ops.add_rms_norm(torch.randn(24, 24).T, None, weight, 1e-6)
    with pytest.raises(RuntimeError, match="even number of columns, got 23"):
        ops.silu_and_mul(x[:, :23].contiguous())
