"""The ops that write, read, turn and copy cached blocks, against the dense reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paged_stream import ops
from tests.ops import ops_reference as reference
from tests.ops.batches import TOLERANCE, empty_cache

DTYPES = [torch.float32, torch.bfloat16]
DIMS = [(64, 64), (64, 32), (128, 128), (80, 32), (80, 20), (40, 40), (16, 6), (64, 0)]


def angles(num_tokens: int, rotary_dim: int) -> torch.Tensor:
    theta = torch.rand(num_tokens, rotary_dim // 2, dtype=torch.float64) * 1e6
    return torch.cat([theta.cos(), theta.sin()], dim=1).float()


def caches(dtype, num_blocks=9, num_kv_heads=3, block_size=4, head_dim=64):
    # One layer of a whole cache: blocks of K and V interleave with nothing, rows are dense.
    return empty_cache(2, 2, num_blocks, num_kv_heads, block_size, head_dim, dtype)[1]


def assert_close(actual, expected):
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(
        actual.double(), expected.double(), atol=tolerance, rtol=tolerance, equal_nan=True
    )


@settings(
    max_examples=40,
    derandomize=True,
)
@given(data=st.data())
def test_rotary_and_cache(isa, data):
    head_dim, rotary_dim = data.draw(st.sampled_from(DIMS))
    dtype, interleaved = data.draw(st.sampled_from(DTYPES)), data.draw(st.booleans())
    num_tokens, group = data.draw(st.integers(0, 30)), data.draw(st.integers(1, 3))
    with_sinks = data.draw(st.booleans())
    k_cache, v_cache = caches(dtype, head_dim=head_dim)
    fused = torch.randn(num_tokens, 3 * group + 6, head_dim).to(dtype)
    query, key, value = fused.split([3 * group, 3, 3], dim=1)
    before = fused.clone()
    rotary, sink_rotary = angles(num_tokens, rotary_dim), angles(num_tokens, rotary_dim)
    slots = torch.randperm(36)[:num_tokens]
    slots[::5] = -1
    sink_query = torch.full_like(query, math.nan).contiguous() if with_sinks else None
    expected_k = reference.scatter(k_cache, reference.rotate(key, rotary, interleaved), slots)
    expected_v = reference.scatter(v_cache, value, slots)
    ops.rotary_and_cache(
        query,
        sink_query,
        key,
        value,
        k_cache,
        v_cache,
        rotary,
        sink_rotary if with_sinks else None,
        slots,
        interleaved,
    )
    old_query = before[:, : 3 * group]
    assert_close(query, reference.rotate(old_query, rotary, interleaved))
    if with_sinks:
        assert_close(sink_query, reference.rotate(old_query, sink_rotary, interleaved))
    assert torch.equal(fused[:, 3 * group :], before[:, 3 * group :])
    assert_close(k_cache, expected_k)
    assert_close(v_cache, expected_v)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head_dim, rotary_dim", DIMS)
def test_gather_scatter_reindex(isa, dtype, interleaved, head_dim, rotary_dim):
    k_cache, v_cache = caches(dtype, head_dim=head_dim)
    k_cache.normal_(), v_cache.normal_()
    slots = torch.randperm(36)[:20]
    slots[3] = -1
    rotary = angles(20, rotary_dim)
    key, value = ops.gather_blocks(k_cache, v_cache, slots, rotary, interleaved)
    expected = reference.gather_blocks(k_cache, v_cache, slots, rotary, interleaved)
    assert_close(key, expected[0])
    assert torch.equal(value.double(), expected[1])

    turned = k_cache.clone()
    ops.rotary_reindex(turned, slots, rotary, interleaved)
    assert_close(turned, reference.scatter(k_cache, expected[0], slots))

    target_k, target_v = torch.zeros_like(k_cache), torch.zeros_like(v_cache)
    raw_key, raw_value = ops.gather_blocks(k_cache, v_cache, slots)
    ops.scatter_blocks(raw_key, raw_value, target_k, target_v, slots, rotary, interleaved)
    assert torch.equal(target_k, reference.scatter(target_k, key, slots))
    assert torch.equal(target_v, reference.scatter(target_v, raw_value, slots))


def test_rotation_rounds_once():
    k_cache, v_cache = caches(torch.bfloat16, head_dim=64)
    k_cache.normal_(), v_cache.normal_()
    slots, rotary = torch.arange(36), angles(36, 64)
    key, _ = ops.gather_blocks(k_cache, v_cache, slots, rotary, False)
    exact, _ = reference.gather_blocks(k_cache, v_cache, slots, rotary, False)
    wrong = key != exact.to(torch.bfloat16)
    # float32 arithmetic may turn a near tie the other way, seldom.
    assert wrong.float().mean() < 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_survive(isa, dtype):
    k_cache, v_cache = caches(dtype, head_dim=32)
    k_cache.zero_()
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-40, 3.3e38])
    k_cache[0, 0, 0, :6] = special.to(dtype)
    slots = torch.arange(36)
    rotary = torch.cat([torch.ones(36, 16), torch.zeros(36, 16)], dim=1)
    key, _ = ops.gather_blocks(k_cache, v_cache, slots, rotary, False)
    # Zero times infinity is NaN: compare the ones whose partner is finite.
    assert key[0, 0, 0].isnan() and key[0, 0, 1] == math.inf and key[0, 0, 2] == -math.inf
    assert torch.equal(key[0, 0, 3:16], k_cache[0, 0, 0, 3:16])


@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_blocks(dtype):
    kv_cache = torch.randn(3, 2, 8, 2, 4, 16).to(dtype)
    expected = kv_cache.clone()
    expected[:, :, 5], expected[:, :, 2] = kv_cache[:, :, 0], kv_cache[:, :, 0]
    expected[:, :, 1] = kv_cache[:, :, 7]
    ops.copy_blocks(kv_cache, torch.tensor([[0, 5], [7, 1], [0, 2]]))
    assert torch.equal(kv_cache, expected)
    ops.copy_blocks(kv_cache, torch.empty(0, 2, dtype=torch.int64))
    assert torch.equal(kv_cache, expected)


# Caches in int8


def random_rows(*shape) -> torch.Tensor:
    """Rows of an int8 cache, of sizes that differ by far."""
    return reference.quantize(torch.randn(shape) * torch.logspace(-8, 8, shape[-2])[:, None])


def assert_rounded(rows, exact, is_scale_exact: bool = True) -> None:
    """Rows of an int8 cache hold ``exact``, rounded to their scale, which is as it should be."""
    scales, exact = reference.scales(rows), exact.double()
    largest = exact.abs().amax(-1, keepdim=True)
    if is_scale_exact:
        assert torch.equal(scales, (largest.float() / 127).double())
    torch.testing.assert_close(scales, largest / 127, rtol=1e-6, atol=0)
    error = (reference.dequantize(rows) - exact).abs()
    assert (error <= 0.5001 * scales).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head_dim, rotary_dim", DIMS)
def test_rows_are_quantised_when_they_are_written(isa, dtype, interleaved, head_dim, rotary_dim):
    k_cache, v_cache = caches(torch.int8, head_dim=head_dim)
    before = k_cache.clone()
    fused = torch.randn(30, 9, head_dim) * torch.logspace(-8, 8, 30)[:, None, None]
    query, key, value = fused.to(dtype).split([3, 3, 3], dim=1)
    old_query, sink_query = query.clone(), torch.empty(30, 3, head_dim, dtype=dtype)
    rotary, sink_rotary, slots = angles(30, rotary_dim), angles(30, rotary_dim), torch.randperm(36)
    slots, others = slots[:30].clone(), slots[30:]
    slots[::5] = -1
    ops.rotary_and_cache(
        *(query, sink_query, key, value, k_cache, v_cache, rotary, sink_rotary, slots, interleaved)
    )
    # Queries are not quantised.
    for turned, table in ((query, rotary), (sink_query, sink_rotary)):
        exact = reference.rotate(old_query, table, interleaved)
        error = (turned.double() - exact).abs()
        assert (error <= TOLERANCE[dtype] * exact.abs().amax(-1, keepdim=True)).all()
    k_rows, v_rows = ops.gather_blocks(k_cache, v_cache, slots)
    written = slots >= 0
    exact = reference.rotate(key, rotary, interleaved)
    assert_rounded(k_rows[written], exact[written], is_scale_exact=False)
    assert_rounded(v_rows[written], value[written])
    untouched, _ = ops.gather_blocks(k_cache, v_cache, others)
    assert torch.equal(untouched, ops.gather_blocks(before, before, others)[0])


def test_a_row_does_not_depend_on_the_others(isa):
    """Bit for bit: a token's K and V are what they are alone."""
    fused = torch.randn(20, 9, 64)
    rotary, slots = angles(20, 64), torch.arange(20)
    together = caches(torch.int8)
    query, key, value = fused.clone().split([3, 3, 3], dim=1)
    ops.rotary_and_cache(query, None, key, value, *together, rotary, None, slots)
    alone = caches(torch.int8)
    for token in reversed(range(20)):
        query, key, value = fused[token : token + 1].clone().split([3, 3, 3], dim=1)
        table, slot = rotary[token : token + 1], slots[token : token + 1]
        ops.rotary_and_cache(query, None, key, value, *alone, table, None, slot)
    assert torch.equal(together, alone)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head_dim, rotary_dim", DIMS)
def test_quantised_rows_move_whole_and_turn(isa, interleaved, head_dim, rotary_dim):
    k_cache, v_cache = random_rows(2, 9, 3, 4, head_dim)
    slots = torch.randperm(36)[:20]
    slots[3] = -1
    rotary = angles(20, rotary_dim)
    raw_key, raw_value = ops.gather_blocks(k_cache, v_cache, slots)
    expected = reference.gather_blocks(k_cache, v_cache, slots, None, False)
    assert torch.equal(raw_key.double(), expected[0])
    assert torch.equal(raw_value.double(), expected[1])
    target_k, target_v = torch.zeros_like(k_cache), torch.zeros_like(v_cache)
    ops.scatter_blocks(raw_key, raw_value, target_k, target_v, slots)
    assert torch.equal(target_k, reference.scatter(target_k, raw_key, slots))
    assert torch.equal(target_v, reference.scatter(target_v, raw_value, slots))

    key, value = ops.gather_blocks(k_cache, v_cache, slots, rotary, interleaved)
    assert torch.equal(value, raw_value)
    if rotary_dim:
        exact = reference.rotate(reference.dequantize(raw_key), rotary, interleaved)
        is_read = slots >= 0
        assert_rounded(key[is_read], exact[is_read], is_scale_exact=False)
    else:
        assert torch.equal(key, raw_key)
    turned = k_cache.clone()
    ops.rotary_reindex(turned, slots, rotary, interleaved)
    assert torch.equal(turned, reference.scatter(k_cache, key, slots))
    ops.scatter_blocks(raw_key, raw_value, target_k, target_v, slots, rotary, interleaved)
    assert torch.equal(target_k, reference.scatter(target_k, key, slots))


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_in_quantised_rows(isa, dtype):
    """What is not finite stays visible, what is tiny or huge does not become so."""
    value = torch.randn(6, 3, 40)
    value[1, 0, 7], value[2, 1, 39], value[3] = math.nan, -math.inf, 0.0
    value[4, 0] *= 1e-42
    value[5, 2] *= 5e37
    value = value.to(dtype)
    k_cache, v_cache = caches(torch.int8, head_dim=40)
    key = query = value.clone()
    slots, rotary = torch.arange(6), torch.empty(6, 0)
    ops.rotary_and_cache(query, None, key, value, k_cache, v_cache, rotary, None, slots)
    _, rows = ops.gather_blocks(k_cache, v_cache, slots)
    restored = reference.dequantize(rows)
    is_whole = value.isfinite().all(-1)
    assert restored[~is_whole].isnan().all() and not restored[is_whole].isnan().any()
    assert not restored[3].any() and restored[4, 0].abs().max() < 1e-38
    is_tiny = value.abs().amax(-1) < 1e-38
    assert_rounded(rows[is_whole & ~is_tiny], value[is_whole & ~is_tiny])


def test_copy_quantised_blocks():
    kv_cache = random_rows(3, 2, 8, 2, 4, 16)
    expected = kv_cache.clone()
    expected[:, :, 5], expected[:, :, 1] = kv_cache[:, :, 0], kv_cache[:, :, 7]
    ops.copy_blocks(kv_cache, torch.tensor([[0, 5], [7, 1]]))
    assert torch.equal(kv_cache, expected)
