"""Projections in blocks of 32: the numbers that llama.cpp's formats stand for, on any processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream import ops

FORMATS = ["Q4_0", "Q4_1", "Q8_0"]
MAX_CODE = 127 * 128


def blocks_of(out_features, in_features, block_format, seed=0):
    """Blocks, and the float64 weight that gguf makes of them."""
    values = np.random.default_rng(seed).standard_normal((out_features, in_features))
    kind = GGMLQuantizationType[block_format]
    blocks = quantize(values.astype(np.float32), kind)
    return torch.from_numpy(blocks), torch.from_numpy(dequantize(blocks, kind)).double()


def rounded(input):
    """Activations as 15-bit integers times a scale for each 32, in float64."""
    blocks = input.float().unflatten(-1, (-1, 32))
    largest = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    codes = (blocks.double() * (MAX_CODE / largest).double()).round()
    return (codes * (largest / MAX_CODE).double()).flatten(-2)


def inputs(rows, in_features, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, in_features, generator=generator).to(dtype)


@pytest.mark.parametrize("block_format", FORMATS)
@settings(max_examples=25)
@given(
    rows=st.integers(0, 30),
    num_blocks=st.integers(1, 5),
    out_features=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bias=st.booleans(),
    float_output=st.booleans(),
)
def test_equals_dequantised(
    block_format, rows, num_blocks, out_features, dtype, bias, float_output
):
    blocks, weight = blocks_of(out_features, 32 * num_blocks, block_format)
    input = inputs(rows, 32 * num_blocks, dtype)
    offset = inputs(1, out_features, dtype, seed=1)[0] if bias else None
    packed = ops.pack_quantized_weight(blocks, block_format)
    result = ops.linear(input, packed, offset, out_features, float_output)
    assert result.dtype == (torch.float32 if float_output else dtype)
    expected = rounded(input) @ weight.T + (offset.double() if bias else 0)
    exact = result.dtype == torch.float32
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if exact else {"rtol": 8e-3, "atol": 1e-3}
    torch.testing.assert_close(result.double(), expected, **tolerance)


@pytest.mark.parametrize("block_format", FORMATS)
def test_integers_are_exact(quantized_isa, block_format):
    """Codes and inputs that need no rounding give the exact product on every processor."""
    generator = torch.Generator().manual_seed(0)
    low, high = {"Q4_0": (-8, 8), "Q4_1": (0, 16), "Q8_0": (-127, 128)}[block_format]
    weight = torch.randint(low, high, (50, 32), generator=generator).float()
    weight[:, 0] = low if low else 15  # so that a scale of one represents all
    if block_format == "Q4_1":
        weight[:, 1] = 0
    kind = GGMLQuantizationType[block_format]
    blocks = quantize(weight.numpy(), kind)
    assert np.array_equal(dequantize(blocks, kind), weight.numpy())
    input = torch.randint(-MAX_CODE, MAX_CODE + 1, (13, 32), generator=generator).float()
    input[:, 0] = MAX_CODE
    packed = ops.pack_quantized_weight(torch.from_numpy(blocks), block_format)
    expected = (input.double() @ weight.double().T).float()
    assert torch.equal(ops.linear(input, packed, None, 50), expected)


@pytest.mark.parametrize("block_format", FORMATS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_is_the_same_bits_in_any_company(quantized_isa, block_format, threads):
    torch.set_num_threads(threads)
    packed = ops.pack_quantized_weight(blocks_of(330, 96, block_format)[0], block_format)
    input = inputs(150, 96, torch.bfloat16)
    whole = ops.linear(input, packed, None, 330, True)
    for count in (1, 2, 3, 5, 8, 12, 13, 24, 100):
        for start in (0, 17, 150 - count):
            part = ops.linear(input[start : start + count], packed, None, 330, True)
            assert torch.equal(part, whole[start : start + count]), (count, start)


@pytest.mark.parametrize("block_format", FORMATS)
def test_rows_may_be_strided(block_format):
    packed = ops.pack_quantized_weight(blocks_of(48, 64, block_format)[0], block_format)
    input, wide = inputs(9, 64), torch.zeros(9, 100)
    wide[:, 4:68] = input
    expected = ops.linear(input, packed, None, 48)
    assert torch.equal(ops.linear(wide[:, 4:68], packed, None, 48), expected)


@pytest.mark.parametrize("block_format", FORMATS)
def test_inputs_of_any_size(quantized_isa, block_format):
    """Zeros, subnormals and huge numbers neither overflow nor disturb the blocks beside them."""
    blocks, weight = blocks_of(20, 160, block_format)
    packed = ops.pack_quantized_weight(blocks, block_format)
    input = inputs(1, 160)
    input[0, 32:64] = 0
    input[0, 64:96] *= 1e-42
    input[0, 96:128] *= 1e30
    result = ops.linear(input, packed, None, 20).double()
    expected = rounded(input) @ weight.T
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)
    input[0, 96:128] = 1
    result = ops.linear(input, packed, None, 20).double()
    expected = rounded(input) @ weight.T
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_stays_visible_and_in_its_row(quantized_isa, bad):
    packed = ops.pack_quantized_weight(blocks_of(20, 64, "Q8_0")[0], "Q8_0")
    input = inputs(3, 64)
    expected = ops.linear(input, packed, None, 20)
    input[1, 5] = bad
    result = ops.linear(input, packed, None, 20)
    assert not result[1].isfinite().any()
    assert torch.equal(result[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("block_format", FORMATS)
def test_opcheck(block_format):
    blocks, _ = blocks_of(20, 64, block_format)
    library = torch.ops.paged_stream
    torch.library.opcheck(library.pack_quantized_weight.default, (blocks, block_format))
    packed = ops.pack_quantized_weight(blocks, block_format)
    input = inputs(5, 64, torch.bfloat16)
    for float_output in (False, True):
        torch.library.opcheck(library.linear.default, (input, packed, None, 20, float_output))


def test_misuse_is_explained():
    blocks, _ = blocks_of(20, 64, "Q4_1")
    packed = ops.pack_quantized_weight(blocks, "Q4_1")
    with pytest.raises(RuntimeError, match="format must be Q4_0, Q4_1 or Q8_0, got Q6_K"):
        ops.pack_quantized_weight(blocks, "Q6_K")
    with pytest.raises(RuntimeError, match="multiple of 34 bytes for Q8_0, got 40"):
        ops.pack_quantized_weight(blocks, "Q8_0")
    with pytest.raises(RuntimeError, match="groups must be Byte, got Float"):
        ops.pack_quantized_weight(blocks.float(), "Q4_1")
    with pytest.raises(RuntimeError, match=r"input must have shape \[T, in_features\].*64"):
        ops.linear(inputs(3, 96), packed, None, 20)
    with pytest.raises(RuntimeError, match="packed_weight must have shape"):
        ops.linear(inputs(3, 64), packed, None, 40)
    with pytest.raises(
        RuntimeError,
        match="must come from pack_quantized_weight; no format has panel groups of 100",
    ):
        ops.linear(inputs(3, 64), packed[:, :, :100].contiguous(), None, 20)
    with pytest.raises(RuntimeError, match="input must be Float or BFloat16, got "):
        ops.linear(inputs(3, 64).double(), packed, None, 20)
    with pytest.raises(RuntimeError, match="bias must be Float, got BFloat16"):
        ops.linear(inputs(3, 64), packed, torch.zeros(20).bfloat16(), 20)
