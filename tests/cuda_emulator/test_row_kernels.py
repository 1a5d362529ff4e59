"""Norm, activation and rotary tables against float64, and the tables against the CPU's."""

from __future__ import annotations

import pytest
import torch

from paged_stream import ops

KINDS = [(torch.float32, 0, 2e-6), (torch.bfloat16, 1, 2.0**-8), (torch.float16, 3, 2.0**-11)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("dtype, kind, step", KINDS)
@pytest.mark.parametrize("dim", [64, 50, 2048, 10_000])
@pytest.mark.parametrize("has_delta", [False, True])
def test_add_rms_norm(emulator, dtype, kind, step, dim, has_delta):
    rows = 3 if dim < 1000 else 1
    residual, weight = normal(rows, dim).to(dtype), normal(dim, seed=2)
    delta = normal(rows, dim, seed=1).to(dtype) if has_delta else None
    total = residual if delta is None else (residual.float() + delta.float()).to(dtype)
    out = torch.full_like(residual, torch.nan)
    emulator.call("add_rms_norm", residual, delta, weight, out, rows, dim, 1e-5, kind)
    assert torch.equal(residual, total)
    wide = total.double()
    expected = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert ((out.double() - expected).abs() <= expected.abs() * step * 1.01 + 1e-6).all()


@pytest.mark.parametrize("dtype, kind, step", KINDS)
@pytest.mark.parametrize("dim", [64, 50, 1000])
def test_silu_and_mul(emulator, dtype, kind, step, dim):
    gate_up = (normal(3, 2 * dim) * 10).to(dtype)
    gate_up[0, :3] = torch.tensor([-30000.0, 30000.0, 0.0]).to(dtype)
    out = torch.full((3, dim), torch.nan, dtype=dtype)
    emulator.call("silu_and_mul", gate_up, out, 3, dim, kind)
    gate, up = gate_up.double().chunk(2, 1)
    expected = gate * gate.sigmoid() * up
    limit = torch.finfo(dtype).max
    expected = torch.where(expected.abs() > limit, expected.sign() * torch.inf, expected)
    finite = expected.isfinite()
    assert torch.equal(out.double()[~finite], expected[~finite])
    error = (out.double() - expected)[finite].abs()
    assert (error <= expected[finite].abs() * step * 1.01 + 1e-7).all()


def test_rotary_table(emulator):
    positions = torch.tensor([0, 1, 4095, 4_000_000, 2**31 + 5, 2**40])
    inv_freq = 10_000.0 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    out = torch.full((len(positions), 64), torch.nan)
    emulator.call("rotary_table", positions, inv_freq, 1.5, out, len(positions), 32)
    assert torch.equal(out, ops.rotary_table(positions, inv_freq, 1.5))
