"""Kernels that write, read, rotate and copy cache rows, against the CPU ops and the references.

float32, bfloat16 and int8 exist on the CPU, and results are bit-identical to its fused
instructions. float16 and float8 are compared with the rounded results of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from paged_stream import ops
from tests.ops import ops_reference

# As DType in csrc/include/number_types.h.
KINDS = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.int8: 2,
    torch.float16: 3,
    torch.float8_e4m3fn: 4,
}
PAIRS = [
    (dtype, cache)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for cache in (dtype, torch.int8, torch.float8_e4m3fn)
]
BLOCK_SIZE, NUM_BLOCKS = 4, 6


@dataclass
class Rows:
    """Heads of tokens, the cache that they are written to, and angles."""

    dtype: torch.dtype
    cache_dtype: torch.dtype
    head_dim: int = 64
    rotary_dim: int = 64
    interleaved: bool = False
    num_tokens: int = 5
    num_heads: int = 3
    num_kv_heads: int = 2
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self):
        self.slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=self.generator)
        self.slots = self.slots[: self.num_tokens].contiguous()
        self.slots[1] = -1
        angles = torch.randn(
            self.num_tokens, self.rotary_dim // 2, generator=self.generator, dtype=torch.float64
        )
        self.rotary = torch.cat([angles.cos(), angles.sin()], 1).float()
        self.sink_rotary = torch.cat([angles.sin(), angles.cos()], 1).float()

    def heads(self, count: int) -> torch.Tensor:
        shape = (self.num_tokens, count, self.head_dim)
        return (torch.randn(shape, generator=self.generator) * 3).to(self.dtype)

    def cache(self) -> torch.Tensor:
        """Return a cache of random rows."""
        shape = (NUM_BLOCKS, self.num_kv_heads, BLOCK_SIZE, self.head_dim)
        x = torch.randn(shape, generator=self.generator) * 3
        return as_rows(x, self.cache_dtype)

    def geometry(self, cache: torch.Tensor) -> tuple[int, ...]:
        return (
            *(NUM_BLOCKS * BLOCK_SIZE, BLOCK_SIZE, cache.stride(0)),
            *(cache.shape[3], self.num_kv_heads),
        )

    def shape(self) -> tuple[int, ...]:
        return self.head_dim, self.rotary_dim // 2, int(self.interleaved)

    def on_cpu(self) -> bool:
        """Whether the CPU ops support these dtypes and rotate with fused instructions."""
        small = {torch.float16, torch.float8_e4m3fn}
        return ops.cpu_isa() != "generic" and not small & {self.dtype, self.cache_dtype}


def as_rows(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert float rows to those of a cache of the dtype."""
    if dtype == torch.int8:
        return ops_reference.quantize(x)
    if dtype == torch.float8_e4m3fn:
        x = x.clamp(-448, 448)
    return x.to(dtype)


def values(rows: torch.Tensor) -> torch.Tensor:
    return ops_reference.dequantize(rows) if rows.dtype == torch.int8 else rows.double()


def assert_rounded(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that rows equal the rounded float64 rows, up to the error of float32 arithmetic."""
    if actual.dtype == torch.int8:
        limit = 0.51 * ops_reference.scales(actual)
        assert ((values(actual) - expected).abs() <= limit).all()
        return
    steps = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
    step = steps.get(actual.dtype, 2.0**-4)
    least = 2.0**-10 if actual.dtype == torch.float8_e4m3fn else 1e-6
    error = (actual.double() - expected.clamp(-448, 448)).abs()
    assert (error <= expected.abs() * step * 1.01 + least).all()


def at_slots(cache: torch.Tensor, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return ops_reference.scatter(cache, rows, slots)


SHAPES = [(64, 64), (128, 128), (80, 20), (64, 16), (8, 0), (256, 256), (72, 36)]


@pytest.mark.parametrize("dtype, cache_dtype", PAIRS)
@pytest.mark.parametrize("head_dim, rotary_dim", SHAPES)
def test_rotary_and_cache(emulator, dtype, cache_dtype, head_dim, rotary_dim):
    for interleaved in (False, True):
        rows = Rows(dtype, cache_dtype, head_dim, rotary_dim, interleaved)
        query, key, value = rows.heads(3), rows.heads(2), rows.heads(2)
        k_cache, v_cache = rows.cache(), rows.cache()
        given = [x.clone() for x in (query, k_cache, v_cache)]
        sink_query = torch.full_like(query, torch.nan)
        emulator.call(
            "rotary_and_cache",
            *(arg for x in (query, sink_query, key, value) for arg in (x, x.stride(0))),
            *(k_cache, v_cache, *rows.geometry(k_cache), rows.rotary, rows.sink_rotary),
            *(rows.slots, rows.num_tokens, rows.num_heads, *rows.shape()),
            *(KINDS[dtype], KINDS[cache_dtype]),
        )
        turned = ops_reference.rotate(given[0], rows.rotary, interleaved)
        sink_turned = ops_reference.rotate(given[0], rows.sink_rotary, interleaved)
        assert_rounded(query, turned)
        assert_rounded(sink_query, sink_turned)
        written = rows.slots >= 0
        blocks, offsets = rows.slots // BLOCK_SIZE, rows.slots % BLOCK_SIZE
        for cache, heads in (
            (k_cache, ops_reference.rotate(key, rows.rotary, interleaved)),
            (v_cache, value.double()),
        ):
            assert_rounded(cache[blocks, :, offsets][written], heads[written])
        untouched = torch.ones(NUM_BLOCKS, BLOCK_SIZE, dtype=torch.bool)
        untouched[blocks[written], offsets[written]] = False
        for cache, before in zip((k_cache, v_cache), given[1:], strict=True):
            same = cache.view(torch.uint8) == before.view(torch.uint8)
            assert same.transpose(1, 2)[untouched].all()
        if rows.on_cpu():
            cpu_query, cpu_k, cpu_v = given
            cpu_sink = torch.empty_like(query)
            ops.rotary_and_cache(
                *(cpu_query, cpu_sink, key, value, cpu_k, cpu_v),
                *(rows.rotary, rows.sink_rotary, rows.slots, interleaved),
            )
            for mine, cpu in (
                *((query, cpu_query), (sink_query, cpu_sink)),
                *((k_cache, cpu_k), (v_cache, cpu_v)),
            ):
                assert torch.equal(mine, cpu)


def move(emulator, rows: Rows, source, target, rotary) -> None:
    """Run move_rows; a side is (key, value, dense token stride, whether it is the cache)."""
    cache = source[0] if source[3] else target[0]
    half = 0 if rotary is None else rotary.shape[1] // 2
    emulator.call(
        "move_rows",
        *(*source, *target, *rows.geometry(cache), rotary, rows.slots, rows.num_tokens),
        *(rows.head_dim, half, int(rows.interleaved), KINDS[rows.cache_dtype]),
    )


@pytest.mark.parametrize("dtype", list(KINDS))
@pytest.mark.parametrize("head_dim, rotary_dim", [(64, 64), (80, 20), (72, 72)])
@pytest.mark.parametrize("turns, interleaved", [(False, False), (True, False), (True, True)])
def test_gather_scatter_and_reindex(emulator, dtype, head_dim, rotary_dim, turns, interleaved):
    rows = Rows(torch.float32, dtype, head_dim, rotary_dim, interleaved)
    k_cache, v_cache = rows.cache(), rows.cache()
    rotary = rows.rotary if turns else None
    row_size = k_cache.shape[3]
    key = torch.full((rows.num_tokens, 2, row_size), 7.0).to(dtype)
    value = key.clone()
    stride = 2 * row_size
    move(emulator, rows, (k_cache, v_cache, 0, 1), (key, value, stride, 0), rotary)
    blocks, offsets = rows.slots // BLOCK_SIZE, rows.slots % BLOCK_SIZE
    there = rows.slots >= 0
    expected_key, expected_value = k_cache[blocks, :, offsets], v_cache[blocks, :, offsets]
    turned = values(expected_key)
    if turns:
        turned = ops_reference.rotate(turned, rotary, interleaved)
        assert_rounded(key[there], turned[there])
    else:
        assert torch.equal(key[there].view(torch.uint8), expected_key[there].view(torch.uint8))
    assert torch.equal(value[there].view(torch.uint8), expected_value[there].view(torch.uint8))
    assert not key[~there].view(torch.uint8).any() and not value[~there].view(torch.uint8).any()

    scattered_k, scattered_v = torch.zeros_like(k_cache), torch.zeros_like(v_cache)
    move(emulator, rows, (key, value, stride, 0), (scattered_k, scattered_v, 0, 1), None)
    zeros = torch.zeros_like(k_cache)
    for scattered, dense in ((scattered_k, key), (scattered_v, value)):
        expected = at_slots(zeros.view(torch.uint8), dense.view(torch.uint8), rows.slots)
        assert torch.equal(scattered.view(torch.uint8), expected)

    if turns:
        reindexed = k_cache.clone()
        in_place = (reindexed, None, 0, 1)
        move(emulator, rows, in_place, (None, None, 0, 1), rotary)
        expected = at_slots(k_cache.view(torch.uint8), key.view(torch.uint8), rows.slots)
        assert torch.equal(reindexed.view(torch.uint8), expected)
    if rows.on_cpu():
        cpu_key, cpu_value = ops.gather_blocks(k_cache, v_cache, rows.slots, rotary, interleaved)
        assert torch.equal(key, cpu_key) and torch.equal(value, cpu_value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_slots_that_no_cache_has_are_skipped(emulator, dtype):
    rows = Rows(torch.float32, dtype)
    rows.slots[:] = NUM_BLOCKS * BLOCK_SIZE
    cache = rows.cache()
    dense = as_rows(torch.randn(rows.num_tokens, 2, 64), dtype)
    before = cache.clone()
    move(emulator, rows, (dense, dense.clone(), 128, 0), (cache, cache.clone(), 0, 1), None)
    assert torch.equal(cache.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("largest", [0.0, 2.0**-126, 3e38, torch.inf, torch.nan])
def test_scales_of_odd_rows_are_the_cpus(emulator, largest):
    rows = Rows(torch.float32, torch.int8, num_tokens=2)
    value = rows.heads(2) * 0
    value[0, 0, 5] = largest
    caches = [rows.cache() for _ in range(2)]
    cpu = [cache.clone() for cache in caches]
    query, key = rows.heads(3), rows.heads(2)
    arguments = [arg for x in (query, query.clone(), key, value) for arg in (x, x.stride(0))]
    emulator.call(
        "rotary_and_cache",
        *(*arguments, *caches, *rows.geometry(caches[0]), rows.rotary, rows.sink_rotary),
        *(rows.slots, 2, 3, *rows.shape(), 0, 2),
    )
    ops.rotary_and_cache(query, None, key, value, *cpu, rows.rotary, None, rows.slots)
    mine, cpus = (ops_reference.scales(x[1]) for x in (caches, cpu))
    torch.testing.assert_close(mine, cpus, rtol=0, atol=0, equal_nan=True)
    if largest < torch.inf:
        assert torch.equal(caches[1], cpu[1])


@pytest.mark.parametrize("row_size", [64, 68, 7])
def test_copy_blocks(emulator, row_size):
    cache = torch.randint(-128, 128, (2, 2, 7, 2, 4, row_size)).to(torch.int8)
    expected = cache.clone()
    pairs = torch.tensor([[0, 3], [0, 4], [6, 1], [2, 7], [-1, 2]])
    emulator.call("copy_blocks", cache, 4, 7, 8 * row_size, pairs, len(pairs))
    for source, target in pairs[:3].tolist():
        expected[:, :, target] = expected[:, :, source]
    assert torch.equal(cache, expected)
