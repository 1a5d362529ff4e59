"""Tokens go in and out of their slots, and keys turn with the positions that they move by."""

from __future__ import annotations

import pytest
import torch

from paged_stream.kv_tokens import KVTokens
from paged_stream.layers.rotary import RotaryEmbedding
from paged_stream.worker.kv_cache import KVCache

LAYERS, HEADS, DIM, BLOCK, BLOCKS = 2, 3, 16, 4, 6


def make_cache(dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(
        num_layers=LAYERS,
        num_blocks=BLOCKS,
        num_kv_heads=HEADS,
        block_size=BLOCK,
        head_dim=DIM,
        dtype=dtype,
        device=torch.device("cpu"),
    )


def tokens(count: int, dtype: torch.dtype = torch.float32) -> KVTokens:
    generator = torch.Generator().manual_seed(count)
    shape = (LAYERS, count, HEADS, DIM)
    return KVTokens(*(torch.randn(shape, generator=generator).to(dtype) for _ in range(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_can_be_read(dtype):
    cache, slots = make_cache(dtype), torch.tensor([5, 0, 17, 16, 23])
    cache.write(slots, tokens(5, dtype))
    for one, other in zip(cache.read(slots), tokens(5, dtype), strict=True):
        assert torch.equal(one, other)
    key = cache.tensor[1, 0]  # of the second layer
    assert torch.equal(key[17 // BLOCK, :, 17 % BLOCK], tokens(5, dtype).key[1, 2])
    others = [slot for slot in range(BLOCKS * BLOCK) if slot not in slots.tolist()]
    assert not any(part.any() for part in cache.read(torch.tensor(others)))


def test_fewer_slots_than_tokens_take_the_first_ones():
    cache, slots = make_cache(), torch.tensor([3, 9])
    cache.write(slots, tokens(5))
    assert torch.equal(cache.read(slots).value, tokens(5).value[:, :2])


def test_no_slots():
    cache, none = make_cache(), torch.empty(0, dtype=torch.int64)
    cache.write(none, cache.read(none))
    assert cache.read(none).key.shape == (LAYERS, 0, HEADS, DIM)
    assert not cache.tensor.any()


def test_copying_a_block_takes_all_layers():
    cache = make_cache()
    cache.write(torch.arange(4, 8), tokens(4))
    cache.copy_block(1, 5)
    for one, other in zip(cache.read(torch.arange(20, 24)), tokens(4), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("distance", [1, 3, 40])
def test_moved_keys_stand_as_if_written_there(distance, interleaved):
    """Slots overlap; values move as they are, keys by ``distance``, with each layer's angles."""
    frequencies = [[0.9, 0.5, 0.1], [0.3, 0.2, 0.01]]
    # What is in the cache is scaled already.
    rotaries = [RotaryEmbedding(inv_freq, 1.5, torch.device("cpu")) for inv_freq in frequencies]
    cache, raw = make_cache(), tokens(6)
    source, destination = torch.arange(2, 8), torch.arange(5, 11)
    cache.write(source, KVTokens(_turned(raw.key, frequencies, 0, interleaved), raw.value))
    cache.move(source, destination, distance, rotaries, interleaved=interleaved)
    moved = cache.read(destination)
    expected = _turned(raw.key, frequencies, distance, interleaved)
    torch.testing.assert_close(moved.key, expected, atol=1e-5, rtol=0)
    assert torch.equal(moved.value, raw.value)


def _turned(keys, frequencies, start: int, interleaved: bool):
    """Raw ``keys`` at positions ``start + 100, ...``, rotated by complex multiplication."""
    keys = keys.double().clone()
    for layer, inv_freq in enumerate(frequencies):
        rotary_dim = 2 * len(inv_freq)
        positions = torch.arange(keys.shape[1], dtype=torch.float64) + start + 100
        angles = (positions[:, None] * torch.tensor(inv_freq).double())[
            :, None
        ]  # [tokens, 1, rotary_dim / 2]
        turned = keys[layer, ..., :rotary_dim]
        if interleaved:
            real, imaginary = turned[..., ::2].clone(), turned[..., 1::2].clone()
        else:
            real, imaginary = (half.clone() for half in turned.chunk(2, dim=-1))
        z = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)
        if interleaved:
            turned[..., ::2], turned[..., 1::2] = z.real, z.imag
        else:
            turned.copy_(torch.cat((z.real, z.imag), dim=-1))
    return keys.float()
