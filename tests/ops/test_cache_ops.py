"""The ops that write, read, turn and copy cached blocks, against the dense reference."""

from __future__ import annotations

import math

import ops_reference as reference
import pytest
import torch
from batches import TOLERANCE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paged_stream import ops

DTYPES = [torch.float32, torch.bfloat16]
DIMS = [(64, 64), (64, 32), (128, 128), (80, 32), (80, 20), (40, 40), (16, 6), (64, 0)]


def angles(num_tokens: int, rotary_dim: int) -> torch.Tensor:
    theta = torch.rand(num_tokens, rotary_dim // 2, dtype=torch.float64) * 1e6
    return torch.cat([theta.cos(), theta.sin()], dim=1).float()


def caches(dtype, num_blocks=9, num_kv_heads=3, block_size=4, head_dim=64):
    # One layer of a whole cache: blocks of K and V interleave with nothing, rows are dense.
    whole = torch.full((2, 2, num_blocks, num_kv_heads, block_size, head_dim), math.nan)
    return whole.to(dtype)[1]


def assert_close(actual, expected):
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(
        actual.double(), expected.double(), atol=tolerance, rtol=tolerance, equal_nan=True
    )


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
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
