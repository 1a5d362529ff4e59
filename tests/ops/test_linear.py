"""Packed projections: right, the same for a row whoever stands beside it, clear when misused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream import ops

DTYPES = [torch.float32, torch.bfloat16]


def problem(rows, in_features, out_features, dtype, *, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(rows, in_features, generator=generator).to(dtype)
    weight = (torch.randn(out_features, in_features, generator=generator) * 0.1).to(dtype)
    offset = torch.randn(out_features, generator=generator).to(dtype) if bias else None
    return input, weight, offset


def reference(input, weight, bias):
    result = input.double() @ weight.double().T
    return result if bias is None else result + bias.double()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25)
@given(
    rows=st.integers(0, 40),
    half_in=st.integers(1, 40),
    out_features=st.integers(1, 150),
    bias=st.booleans(),
    float_output=st.booleans(),
)
def test_equals_float64(dtype, rows, half_in, out_features, bias, float_output):
    input, weight, offset = problem(rows, 2 * half_in, out_features, dtype, bias=bias)
    packed = ops.pack_linear_weight(weight)
    result = ops.linear(input, packed, offset, out_features, float_output)
    exact = dtype == torch.float32 or float_output
    assert result.dtype == (torch.float32 if exact else dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if exact else {"rtol": 8e-3, "atol": 1e-4}
    torch.testing.assert_close(result.double(), reference(input, weight, offset), **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_is_the_same_bits_in_any_company(isa, dtype, threads):
    torch.set_num_threads(threads)
    input, weight, bias = problem(150, 70, 330, dtype)
    packed = ops.pack_linear_weight(weight)
    whole = ops.linear(input, packed, bias, 330, True)
    for count in (1, 2, 3, 5, 6, 7, 8, 12, 13, 24, 100):
        for start in (0, 17, 150 - count):
            part = ops.linear(input[start : start + count], packed, bias, 330, True)
            assert torch.equal(part, whole[start : start + count]), (count, start)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_strided(isa, dtype):
    input, weight, bias = problem(9, 64, 48, dtype)
    wide = torch.zeros(9, 100, dtype=dtype)
    wide[:, 4:68] = input
    packed = ops.pack_linear_weight(weight)
    expected = ops.linear(input, packed, bias, 48)
    assert torch.equal(ops.linear(wide[:, 4:68], packed, bias, 48), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    input, weight, bias = problem(5, 34, 20, dtype)
    library = torch.ops.paged_stream
    torch.library.opcheck(library.pack_linear_weight.default, (weight,))
    packed = ops.pack_linear_weight(weight)
    for float_output in (False, True):
        torch.library.opcheck(library.linear.default, (input, packed, bias, 20, float_output))


def test_misuse_is_explained():
    input, weight, bias = problem(5, 34, 20, torch.bfloat16)
    packed = ops.pack_linear_weight(weight)
    with pytest.raises(RuntimeError, match=r"input must have shape \[T, in_features\].*34"):
        ops.linear(input[:, :30], packed, bias, 20)
    with pytest.raises(RuntimeError, match="input must be BFloat16, got Float"):
        ops.linear(input.float(), packed, bias, 20)
    with pytest.raises(RuntimeError, match=r"bias must have shape \[out_features\]"):
        ops.linear(input, packed, bias[:3], 20)
    with pytest.raises(RuntimeError, match="packed_weight must have shape"):
        ops.linear(input, packed, bias, 40)
    with pytest.raises(RuntimeError, match="input must be contiguous from dimension 1"):
        ops.linear(input.T.contiguous().T, packed, bias, 20)
    with pytest.raises(RuntimeError, match="in_features must be .* even for BFloat16, got 33"):
        ops.pack_linear_weight(weight[:, :33].contiguous())
    with pytest.raises(RuntimeError, match="linear: packed_weight must be a tensor, got None"):
        torch.ops.paged_stream.linear(torch.zeros(2, 8), None, None, 16, False)
    for out_features in (-1, 0, 2**63 - 1):
        with pytest.raises(RuntimeError, match="linear: out_features must be in"):
            ops.linear(torch.zeros(2, 8), torch.zeros(1, 8, 16, 1), None, out_features)
    with pytest.raises(RuntimeError, match="linear: steps of packed_weight must be in .*, got 0"):
        ops.linear(torch.zeros(2, 0), torch.zeros(1, 0, 16, 1), None, 16)
    with pytest.raises(RuntimeError, match="in_features must be positive.*got 0"):
        ops.pack_linear_weight(torch.empty(5, 0))
    with pytest.raises(RuntimeError, match="weight must be Float or BFloat16"):
        ops.pack_linear_weight(weight.double())
