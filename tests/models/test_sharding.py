"""The parts of all ranks make the whole, for every family."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoConfig

from paged_stream.attention.native import NativeBackend
from paged_stream.models.decoder import Decoder
from paged_stream.models.registry import family_of
from paged_stream.models.sharding import WHOLE, Rank, part_of, shard_config, whole_rows
from tests.family_reference import VARIANTS

SPLITTABLE = [name for name in VARIANTS if name != "olmo2"]


def describe(variant):
    settings = dict(VARIANTS[variant])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return family_of(config.model_type).describe(config, None)


def decoders(config, size):
    def make(rank):
        return Decoder(config, NativeBackend(), device="meta", rank=rank)

    return make(WHOLE), [make(Rank(index, size)) for index in range(size)]


@pytest.mark.parametrize("has_one_head", [False, True])
@pytest.mark.parametrize("variant", SPLITTABLE)
def test_parts_make_the_whole(variant, has_one_head):
    config = describe(variant)
    size = config.num_heads if has_one_head or config.num_heads == 3 else 2
    whole, ranks = decoders(config, size)
    for name, parameter in whole.named_parameters():
        numbers = torch.arange(parameter.numel()).view(parameter.shape)
        times = torch.zeros(parameter.numel(), dtype=torch.int64)
        for index, decoder in enumerate(ranks):
            rank = Rank(index, size)
            assert whole_rows(config, name, decoder.get_parameter(name).shape[0], rank) == len(
                parameter
            )
            part = part_of(config, name, len(parameter), rank)
            if part.rows:
                mine = part.of(numbers)
                assert mine.shape == decoder.get_parameter(name).shape, name
                times[mine.flatten()] += 1
        assert times.min() >= 1, f"something of {name} is on no rank"
        is_split = times.max() < size
        if name.endswith(("attention.output.weight", "mlp.up.weight", "mlp.down.weight")):
            assert torch.equal(times, torch.ones_like(times)), f"{name} is not split"
        elif name.endswith(("attention.output.bias", "mlp.down.bias")):
            assert torch.equal(times, torch.ones_like(times)), f"{name} is added more than once"
        elif "norm" in name and config.qk_norm != "per_head" or name.startswith("embedding"):
            assert not is_split, f"{name} must be on every rank"


@pytest.mark.parametrize("size", [2, 4])
def test_pieces_are_the_part(size):
    config = describe("llama3")
    whole, _ = decoders(config, size)
    name = "layers.0.attention.qkv.weight"
    numbers = torch.arange(whole.get_parameter(name).numel()).view(-1, config.hidden_size)
    bounds = [0, config.query_size, config.query_size + config.kv_size, len(numbers)]
    for index in range(size):
        part = part_of(config, name, len(numbers), Rank(index, size))
        expected = part.of(numbers)
        result = torch.full_like(expected, -1)
        for start, stop in zip(bounds, bounds[1:], strict=False):
            for mine, theirs in part.pieces(start, stop):
                result[mine] = numbers[start:stop][theirs]
        assert torch.equal(result, expected)


def test_a_query_head_stays_with_its_kv_head():
    config = describe("llama3")  # 4 query heads, 2 KV heads
    for index in range(4):
        rank_config = shard_config(config, Rank(index, 4))
        assert (rank_config.num_heads, rank_config.num_kv_heads) == (1, 1)
        rows = part_of(config, "layers.0.attention.qkv.weight", 0, Rank(index, 4)).rows
        assert rows[0].start // config.head_dim == index
        assert (rows[1].start - config.query_size) // config.head_dim == index // 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 6, "num_kv_heads": 6}, "attention heads"),
        ({"num_heads": 12, "num_kv_heads": 3}, "KV heads"),
        ({"intermediate_size": 98}, "feed-forward"),
        ({"vocab_size": 3}, "vocabulary"),
        ({"qk_norm": "full"}, "over all heads together"),
    ],
)
def test_what_cannot_be_split_is_refused(change, message):
    config = dataclasses.replace(describe("llama2"), **change)
    with pytest.raises(ValueError, match=f"tensor_parallel_size=4.*{message}"):
        shard_config(config, Rank(0, 4))
