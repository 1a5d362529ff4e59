"""Tokens go in and out of their slots, and keys turn with the positions that they move by."""

from __future__ import annotations

import mmap

import pytest
import torch

from paged_stream.layers.rotary import RotaryEmbedding
from paged_stream.models.kv_tokens import KVTokens, row_size
from paged_stream.worker.kv_cache import KVCache

LAYERS, HEADS, DIM, BLOCK, BLOCKS = 2, 3, 16, 4, 6


def make_cache(dtype: torch.dtype = torch.float32, num_blocks: int = BLOCKS) -> KVCache:
    return KVCache(
        num_layers=LAYERS,
        num_blocks=num_blocks,
        num_kv_heads=HEADS,
        block_size=BLOCK,
        head_dim=DIM,
        dtype=dtype,
        device=torch.device("cpu"),
    )


def tokens(count: int, dtype: torch.dtype = torch.float32) -> KVTokens:
    generator = torch.Generator().manual_seed(count)
    shape = (LAYERS, count, HEADS, row_size(DIM, dtype))
    if dtype == torch.int8:  # any bytes: what is not turned is not looked at
        return KVTokens(
            *(torch.randint(-128, 128, shape, generator=generator).to(dtype) for _ in range(2))
        )
    return KVTokens(*(torch.randn(shape, generator=generator).to(dtype) for _ in range(2)))


def write(cache: KVCache, slots: torch.Tensor, tokens: KVTokens) -> None:
    for layer in range(LAYERS):
        cache.write_layer(layer, slots, tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_what_is_written_can_be_read(dtype):
    cache, slots = make_cache(dtype), torch.tensor([5, 0, 17, 16, 23])
    write(cache, slots, tokens(5, dtype))
    for one, other in zip(cache.read(slots), tokens(5, dtype), strict=True):
        assert torch.equal(one, other)
    key = cache.tensor[1, 0]  # of the second layer
    assert torch.equal(key[17 // BLOCK, :, 17 % BLOCK], tokens(5, dtype).key[1, 2])
    others = [slot for slot in range(BLOCKS * BLOCK) if slot not in slots.tolist()]
    assert not any(part.any() for part in cache.read(torch.tensor(others)))


def test_every_token_has_a_slot():
    with pytest.raises(RuntimeError, match="slot_mapping must have shape"):
        write(make_cache(), torch.tensor([3, 9]), tokens(5))


def test_no_slots():
    cache, none = make_cache(), torch.empty(0, dtype=torch.int64)
    write(cache, none, cache.read(none))
    assert cache.read(none).key.shape == (LAYERS, 0, HEADS, DIM)
    assert not cache.tensor.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_copying_a_block_takes_all_layers(dtype):
    cache = make_cache(dtype)
    write(cache, torch.arange(4, 8), tokens(4, dtype))
    cache.copy_block(1, 5)
    for one, other in zip(cache.read(torch.arange(20, 24)), tokens(4, dtype), strict=True):
        assert torch.equal(one, other)


def test_blocks_take_memory_once_they_are_written():
    """At least their own bytes, and of each of the 4 planes not more than a large page around."""
    cache = make_cache(num_blocks=1 << 14)  # 12 MiB each plane
    assert cache.tensor.nbytes == 48 << 20 and cache.resident_bytes == 0
    write(cache, torch.arange(4 * BLOCK), tokens(4 * BLOCK))
    assert cache.read(torch.arange(4 * BLOCK)).nbytes <= cache.resident_bytes <= 4 * (2 << 20)
    assert not cache.read(torch.arange(1 << 10, 1 << 11)).key.any()  # zeros before they are written
    write(cache, (1 << 15) + torch.arange(BLOCK), tokens(BLOCK))
    assert 8 * mmap.PAGESIZE <= cache.resident_bytes <= 8 * (2 << 20)


@pytest.mark.parametrize("dtype, size", [(torch.bfloat16, 32), (torch.int8, 20)])
def test_bytes_of_a_row(dtype, size):
    cache = make_cache(dtype)
    assert cache.tensor.nbytes == LAYERS * 2 * BLOCKS * HEADS * BLOCK * size
    assert cache.read(torch.arange(5)).nbytes == LAYERS * 2 * 5 * HEADS * size


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("distance", [1, 3, 40])
def test_moved_keys_stand_as_if_written_there(distance, interleaved):
    """Slots overlap; values move as they are, keys by ``distance``, with each layer's angles."""
    frequencies = [[0.9, 0.5, 0.1], [0.3, 0.2, 0.01]]
    # What is in the cache is scaled already.
    rotaries = [RotaryEmbedding(inv_freq, 1.5, torch.device("cpu")) for inv_freq in frequencies]
    cache, raw = make_cache(), tokens(6)
    source, destination = torch.arange(2, 8), torch.arange(5, 11)
    write(cache, source, KVTokens(_turned(raw.key, frequencies, 0, interleaved), raw.value))
    cache.move(source, destination, distance, rotaries, interleaved=interleaved)
    moved = cache.read(destination)
    expected = _turned(raw.key, frequencies, distance, interleaved)
    torch.testing.assert_close(moved.key, expected, atol=1e-5, rtol=0)
    assert torch.equal(moved.value, raw.value)


@pytest.mark.parametrize("interleaved", [False, True])
def test_keys_in_int8_are_rounded_again_by_each_move(interleaved):
    """By half a scale at most; values move as they are."""
    frequencies = [[0.9, 0.5, 0.1], [0.3, 0.2, 0.01]]
    rotaries = [RotaryEmbedding(inv_freq, 1.5, torch.device("cpu")) for inv_freq in frequencies]
    cache, raw = make_cache(torch.int8), tokens(6)
    stored = KVTokens(_quantized(_turned(raw.key, frequencies, 0, interleaved)), _quantized(raw[1]))
    write(cache, torch.arange(6), stored)
    place, bound = 0, 0.501 * _scales(stored.key)
    for distance in (3, 2, 5):
        source, place = place, place + distance
        cache.move(
            *(torch.arange(at, at + 6) for at in (source, place)),
            distance,
            rotaries,
            interleaved=interleaved,
        )
        moved = cache.read(torch.arange(place, place + 6))
        assert torch.equal(moved.value, stored.value)
        # What was rounded before is turned as well, so it counts in any direction of its plane.
        bound = 2**0.5 * bound + 0.501 * _scales(moved.key)
        expected = _turned(raw.key, frequencies, place, interleaved)
        assert ((_dequantized(moved.key) - expected).abs() <= bound).all()


@pytest.mark.parametrize("interleaved", [False, True])
def test_keys_in_int8_that_are_not_turned_stay_as_they_are(interleaved):
    rotaries = [RotaryEmbedding([], 1.0, torch.device("cpu"))] * LAYERS
    cache, raw = make_cache(torch.int8), tokens(6, torch.int8)
    write(cache, torch.arange(2, 8), raw)
    cache.move(torch.arange(2, 8), torch.arange(5, 11), 3, rotaries, interleaved=interleaved)
    for one, other in zip(cache.read(torch.arange(5, 11)), raw, strict=True):
        assert torch.equal(one, other)


def _quantized(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.cat([(x / scale).round().to(torch.int8), scale.view(torch.int8)], dim=-1)


def _scales(rows: torch.Tensor) -> torch.Tensor:
    return rows[..., DIM:].contiguous().view(torch.float32)


def _dequantized(rows: torch.Tensor) -> torch.Tensor:
    return rows[..., :DIM] * _scales(rows)


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
