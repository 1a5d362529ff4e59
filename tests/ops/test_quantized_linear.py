"""Projections in blocks: the numbers that llama.cpp's formats stand for, on any processor."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream import ops
from paged_stream.layers import blocks as blocks_module
from paged_stream.layers.blocks import BLOCK_FORMATS, Blocks, pack_blocks, packed_bytes
from paged_stream.layers.large_pages import resident_bytes, zeros_in_large_pages

FORMATS = list(BLOCK_FORMATS)
MAX_CODE = 127 * 128


def numbers(block_format, blocks):
    """What blocks stand for, float32."""
    if block_format != "Q4_Z":
        return dequantize(blocks, GGMLQuantizationType[block_format])
    groups = blocks.reshape(len(blocks), -1, 20)
    codes = np.concatenate([groups[..., 4:] & 15, groups[..., 4:] >> 4], axis=-1).astype(np.int32)
    scales = groups[..., :2].copy().view(np.float16).astype(np.float32)
    values = scales * (codes - groups[..., 2:3].astype(np.int32))
    return values.reshape(len(blocks), -1).astype(np.float32)


def blocks_of(out_features, num_blocks, block_format, seed=0, powers=False):
    """Random blocks, and the weight that they stand for.

    Args:
        powers: their float16 numbers are powers of two.
    """
    random = np.random.default_rng(seed)
    _, num_bytes, scales = BLOCK_FORMATS[block_format]
    blocks = random.integers(0, 256, (out_features, num_blocks, num_bytes), dtype=np.uint8)
    shape = (out_features, num_blocks, (scales.stop - scales.start) // 2)
    halves = 2.0 ** random.integers(-3, 1, shape) if powers else random.normal(0, 0.05, shape)
    blocks[..., scales] = halves.astype(np.float16).view(np.uint8)
    if block_format == "Q4_Z":
        blocks[..., 2] &= 15
    blocks = blocks.reshape(out_features, -1)
    return torch.from_numpy(blocks), torch.from_numpy(numbers(block_format, blocks))


def pack(blocks, block_format):
    return pack_blocks([Blocks(block_format, blocks)])


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
    num_blocks=st.integers(1, 4),
    out_features=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bias=st.booleans(),
    float_output=st.booleans(),
)
def test_equals_dequantised(
    block_format, rows, num_blocks, out_features, dtype, bias, float_output
):
    blocks, weight = blocks_of(out_features, num_blocks, block_format)
    input = inputs(rows, weight.shape[1], dtype)
    offset = inputs(1, out_features, dtype, seed=1)[0] if bias else None
    result = ops.linear(input, pack(blocks, block_format), offset, out_features, float_output)
    assert result.dtype == (torch.float32 if float_output else dtype)
    expected = rounded(input) @ weight.double().T + (offset.double() if bias else 0)
    size = rounded(input).abs() @ weight.double().abs().T
    # What is subtracted as a min may be many times what is left.
    tolerance = 1e-5 * size + (0 if result.dtype == torch.float32 else 2**-8 * expected.abs())
    assert ((result.double() - expected).abs() <= tolerance + 1e-5).all()


@pytest.mark.parametrize("block_format", FORMATS)
def test_every_number_is_the_formats(quantized_isa, block_format):
    """A row that asks for one number of each row of the weight gets it exactly."""
    blocks, weight = blocks_of(50, 3, block_format, powers=True)
    input = torch.eye(weight.shape[1]) * MAX_CODE
    result = ops.linear(input, pack(blocks, block_format), None, 50)
    assert torch.equal(result, MAX_CODE * weight.T)


@pytest.mark.parametrize("block_format", FORMATS)
def test_rows_of_the_table_are_the_formats_numbers(block_format):
    blocks, weight = blocks_of(37, 2, block_format)
    packed, width = pack(blocks, block_format), weight.shape[1]
    ids = torch.tensor([36, 0, 15, 16, 15, *range(30)])
    assert torch.equal(ops.embedding_rows(ids, packed, width, torch.float32), weight[ids])
    rounded = ops.embedding_rows(ids, packed, width, torch.bfloat16)
    assert torch.equal(rounded, weight[ids].bfloat16())
    assert ops.embedding_rows(ids[:0], packed, width, torch.bfloat16).shape == (0, width)


@pytest.mark.parametrize("block_format", FORMATS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_is_the_same_bits_in_any_company(quantized_isa, block_format, threads):
    torch.set_num_threads(threads)
    blocks, weight = blocks_of(330, 1, block_format)
    packed = pack(blocks, block_format)
    input = inputs(150, weight.shape[1], torch.bfloat16)
    whole = ops.linear(input, packed, None, 330, True)
    for count in (1, 2, 3, 5, 8, 12, 13, 24, 100):
        for start in (0, 17, 150 - count):
            part = ops.linear(input[start : start + count], packed, None, 330, True)
            assert torch.equal(part, whole[start : start + count]), (count, start)


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", ["Q4_0", "Q4_K", "Q6_K"])
def test_parts_of_several_formats(quantized_isa, first, second):
    """Rows of a weight have the bits that they have in a weight of their own."""
    torch.set_num_threads(2)
    formats, rows = (first, second, first), (32, 48, 21)
    parts = []
    for index, (name, count) in enumerate(zip(formats, rows, strict=True)):
        num_blocks = 256 // BLOCK_FORMATS[name].size
        parts.append(Blocks(name, blocks_of(count, num_blocks, name, seed=index)[0]))
    packed, input, bias = pack_blocks(parts), inputs(29, 256), inputs(1, 101)[0]
    result = ops.linear(input, packed, bias, 101)
    alone = [
        ops.linear(input, pack_blocks([part]), offset.contiguous(), len(part.data))
        for part, offset in zip(parts, bias.split(rows), strict=True)
    ]
    assert torch.equal(result, torch.cat(alone, dim=1))
    table = torch.cat([part.values() for part in parts])
    assert torch.equal(ops.embedding_rows(torch.arange(101), packed, 256, torch.float32), table)


@pytest.mark.parametrize("block_format", FORMATS)
def test_pieces_in_any_order_make_the_weight(block_format):
    """And nothing beside their own rows is written."""
    other, _ = blocks_of(32, 2, block_format, seed=1)
    blocks, weight = blocks_of(70, 2, block_format)
    whole = pack_blocks([Blocks(block_format, other), Blocks(block_format, blocks)])
    out = torch.full_like(whole, 7)
    for start, stop in ((64, 70), (0, 16), (16, 64)):
        piece = blocks[start:stop].contiguous()
        formats = [block_format, block_format]
        ops.pack_quantized_weight(out, piece, 32 + start, [32, 70], weight.shape[1], formats)
    ops.pack_quantized_weight(out, other, 0, [32, 70], weight.shape[1], formats)
    assert torch.equal(out, whole)


def test_blocks_that_are_consumed_leave_no_memory(monkeypatch):
    monkeypatch.setattr(blocks_module, "_PIECE_BYTES", 1 << 16)
    made, _ = blocks_of(1003, 64, "Q8_0")
    blocks = zeros_in_large_pages(made.shape, torch.uint8).copy_(made)
    assert resident_bytes(blocks) >= blocks.nbytes
    packed = pack_blocks([Blocks("Q8_0", blocks)], consume=True)
    # A page of two pieces stays; a piece is 16 rows.
    assert resident_bytes(blocks) <= 64 * mmap.PAGESIZE < 0.2 * blocks.nbytes
    assert torch.equal(packed, pack(made, "Q8_0"))


@pytest.mark.parametrize("block_format", FORMATS)
def test_packed_weights_are_hardly_larger(block_format):
    size, num_bytes, _ = BLOCK_FORMATS[block_format]
    in_file = 4096 * 4096 // size * num_bytes
    assert packed_bytes([(block_format, 4096)], 4096) < 1.04 * in_file


@pytest.mark.parametrize("block_format", FORMATS)
def test_rows_may_be_strided(block_format):
    blocks, weight = blocks_of(48, 2, block_format)
    packed, width = pack(blocks, block_format), weight.shape[1]
    input, wide = inputs(9, width), torch.zeros(9, width + 40)
    wide[:, 4 : 4 + width] = input
    expected = ops.linear(input, packed, None, 48)
    assert torch.equal(ops.linear(wide[:, 4 : 4 + width], packed, None, 48), expected)


@pytest.mark.parametrize("block_format", FORMATS)
def test_inputs_of_any_size(quantized_isa, block_format):
    """Zeros, subnormals and huge numbers neither overflow nor disturb the blocks beside them."""
    blocks, weight = blocks_of(20, 8, block_format)
    packed, weight = pack(blocks, block_format), weight.double()
    input = inputs(1, weight.shape[1])
    input[0, 32:64] = 0
    input[0, 64:96] *= 1e-42
    for huge in (1e30, 1):
        input[0, 96:128] *= huge
        result = ops.linear(input, packed, None, 20).double()
        size = rounded(input).abs() @ weight.abs().T
        assert ((result - rounded(input) @ weight.T).abs() <= 1e-3 * size).all()
        input[0, 96:128] = 1


@pytest.mark.parametrize("block_format", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_stays_visible_and_in_its_row(quantized_isa, block_format, bad):
    blocks, weight = blocks_of(20, 2, block_format)
    packed, input = pack(blocks, block_format), inputs(3, weight.shape[1])
    expected = ops.linear(input, packed, None, 20)
    input[1, 5] = bad
    result = ops.linear(input, packed, None, 20)
    assert not result[1].isfinite().any()
    assert torch.equal(result[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("block_format", FORMATS)
def test_opcheck(block_format):
    blocks, weight = blocks_of(20, 2, block_format)
    library = torch.ops.paged_stream
    packed = pack(blocks, block_format)
    out = torch.empty_like(packed)
    arguments = (out, blocks[:16], 0, [20], weight.shape[1], block_format)
    torch.library.opcheck(library.pack_quantized_weight.default, arguments)
    input, ids = inputs(5, weight.shape[1], torch.bfloat16), torch.tensor([3, 19])
    for flag in (False, True):
        torch.library.opcheck(library.linear.default, (input, packed, None, 20, flag))
        arguments = (ids, packed, weight.shape[1], flag)
        torch.library.opcheck(library.embedding_rows.default, arguments)


def test_misuse_is_explained():
    blocks, _ = blocks_of(20, 2, "Q4_1")
    packed = pack(blocks, "Q4_1")
    for changed, message in (
        ({"formats": ["Q4_2"]}, "format must be one of Q4_0 Q4_1 .*, got Q4_2"),
        ({"blocks": blocks[:, :7].contiguous()}, "rows of 40 bytes for 64 numbers of Q4_1, got 7"),
        ({"in_features": 0}, "in_features must be in .*, got 0"),
        ({"blocks": blocks.float()}, "blocks must be Byte, got Float"),
        ({"out": packed[1:]}, r"out must have shape \[bytes\]"),
        ({"first_row": 20}, r"first_row must be in \[0, 19\], got 20"),
        ({"first_row": 16}, r"rows of blocks from row 16 must be in \[1, 4\], got 20"),
        ({"blocks": blocks[:0]}, r"rows of blocks from row 0 must be in \[1, 20\], got 0"),
        ({"blocks": blocks[:4]}, "whole groups of 16 rows, .*, got rows 0 to 4 of 20"),
        ({"blocks": blocks[:4], "first_row": 12}, "whole groups of 16 rows, .* 12 to 16 of 20"),
    ):
        arguments = {"out": packed, "blocks": blocks, "first_row": 0, "rows": [20]}
        arguments |= {"in_features": 64, "formats": ["Q4_1"]} | changed
        with pytest.raises(RuntimeError, match=message):
            ops.pack_quantized_weight(**arguments)
    with pytest.raises(RuntimeError, match="multiple of 16 rows, got 20 before another"):
        pack_blocks([Blocks("Q4_1", blocks)] * 2)
    with pytest.raises(RuntimeError, match="there must be 1 to 4 parts .* got 5"):
        pack_blocks([Blocks("Q4_1", blocks[:16])] * 5)
    with pytest.raises(RuntimeError, match=r"input must have shape \[T, in_features\].*64"):
        ops.linear(inputs(3, 96), packed, None, 20)
    with pytest.raises(RuntimeError, match="packed_weight must have 40 rows, got 20"):
        ops.linear(inputs(3, 64), packed, None, 40)
    for spoilt in (packed[:-1].contiguous(), torch.zeros_like(packed), packed[:7].contiguous()):
        with pytest.raises(RuntimeError, match="packed_weight (of dtype Byte )?must"):
            ops.linear(inputs(3, 64), spoilt, None, 20)
    with pytest.raises(RuntimeError, match="input must be Float or BFloat16, got "):
        ops.linear(inputs(3, 64).double(), packed, None, 20)
    with pytest.raises(RuntimeError, match="bias must be Float, got BFloat16"):
        ops.linear(inputs(3, 64), packed, torch.zeros(20).bfloat16(), 20)
    with pytest.raises(RuntimeError, match=r"ids\[1\] must be in \[0, 19\], got 20"):
        ops.embedding_rows(torch.tensor([3, 20]), packed, 64, torch.float32)
    with pytest.raises(RuntimeError, match="packed_weight must have rows of 32 numbers, got 64"):
        ops.embedding_rows(torch.tensor([3]), packed, 32, torch.float32)


@pytest.mark.parametrize("at", [4, 8, 16, 20])
@pytest.mark.parametrize("value", [-1, 0, 2, 13, 2**31 - 1])
def test_a_header_that_does_not_fit_is_refused(at, value):
    packed = pack(blocks_of(20, 2, "Q4_1")[0], "Q4_1")
    before = packed[at : at + 4].view(torch.int32).clone()
    packed[at : at + 4].view(torch.int32)[0] = value
    if before.item() == value:
        return
    with pytest.raises(RuntimeError, match="packed_weight|must be a multiple|rows of a part"):
        ops.linear(inputs(3, 64), packed, None, 20)
