"""Which caches and strides the ops take, up to the borders."""

from __future__ import annotations

import pytest
import torch

from paged_stream import ops

SLOTS = torch.tensor([0, -1])


def gather(k_cache, v_cache=None, slots=SLOTS, rotary=None):
    return ops.gather_blocks(k_cache, k_cache if v_cache is None else v_cache, slots, rotary)


@pytest.mark.parametrize("head_dim", [8, 256])
def test_the_smallest_and_the_largest_head(head_dim):
    assert gather(torch.zeros(2, 1, 4, head_dim))[0].shape == (2, 1, head_dim)


@pytest.mark.parametrize("head_dim", [0, 4, 12, 264])
def test_other_heads_are_refused(head_dim):
    message = f"head_dim must be a multiple of 8 from 8 to 256, got {head_dim}"
    with pytest.raises(RuntimeError, match=message):
        gather(torch.zeros(2, 1, 4, head_dim))


@pytest.mark.parametrize("shape", [(2, 0, 4, 8), (2, 1, 0, 8)])
def test_a_block_has_heads_and_slots(shape):
    with pytest.raises(RuntimeError, match=r"of k_cache must be in \[1, \d+\], got 0"):
        gather(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_the_cpu_has_no_smaller_floats(dtype):
    with pytest.raises(RuntimeError, match="k_cache must be Float, BFloat16 or Char on CPU, got"):
        gather(torch.zeros(2, 1, 4, 8).to(dtype))


def test_slots_are_counted_in_31_bits():
    block = torch.zeros(1, 1, 1, 8)
    gather(block.expand(2**31 - 1, 1, 1, 8))
    with pytest.raises(RuntimeError, match=r"k_cache must have fewer than 2\^31 slots"):
        gather(block.expand(2**31, 1, 1, 8))


def test_blocks_of_both_caches_lie_equally_far_apart():
    k_cache, v_cache = torch.zeros(2, 1, 4, 8), torch.zeros(4, 1, 4, 8)[::2]
    with pytest.raises(RuntimeError, match="the same stride between blocks, got 32 and 64"):
        gather(k_cache, v_cache)
    gather(k_cache[:1], v_cache[:1])  # one block is no distance


def test_rotation_may_take_the_whole_head():
    gather(torch.zeros(2, 1, 4, 8), rotary=torch.zeros(2, 8))


@pytest.mark.parametrize(
    ("slots", "shape"),
    [(torch.tensor([[0], [1]]), r"\[2, 1\]"), (torch.tensor(0), r"\[\]")],
)
def test_dimensions_are_as_many_as_they_should_be(slots, shape):
    with pytest.raises(RuntimeError, match=f"slot_mapping must have shape .*, got {shape}"):
        gather(torch.zeros(2, 1, 4, 8), slots=slots)


@pytest.mark.parametrize("slots", [torch.tensor([1, 0, 2])[::2], torch.tensor([1]).expand(2)])
def test_strides_neither_too_large_nor_too_small(slots):
    with pytest.raises(RuntimeError, match="slot_mapping must be contiguous from dimension 0"):
        gather(torch.zeros(2, 1, 4, 8), slots=slots)


def test_the_stride_of_one_element_or_of_none_does_not_matter():
    assert gather(torch.zeros(2, 1, 4, 8), slots=torch.tensor([1, 0])[::2])[0].shape == (1, 1, 8)
    assert ops.silu_and_mul(torch.zeros(8, 0).T).shape == (0, 4)


def test_angles_towards_the_sinks_are_as_many_as_the_others():
    k_cache, heads = torch.zeros(2, 1, 4, 8), torch.zeros(2, 1, 8)
    for sink_rotary in (torch.zeros(2, 4), torch.zeros(1, 8)):
        with pytest.raises(RuntimeError, match="sink_rotary must have (the )?shape"):
            ops.rotary_and_cache(
                *(heads, heads.clone(), heads, heads, k_cache, k_cache.clone()),
                *(torch.zeros(2, 8), sink_rotary, SLOTS, False),
            )
