"""Keys whose channels differ by far become alike, and no score changes by a bit."""

from __future__ import annotations

import pytest
import torch

from paged_stream import LLM, LoRARequest
from paged_stream.models.key_balance import _factors, balance_keys
from paged_stream.worker import worker
from tests.family_reference import random_ids, tiny_model
from tests.lora_adapter import Adapter


@pytest.fixture
def scores(tmp_path, monkeypatch):
    """Log-probabilities by a model of which a few key biases are large, as in trained ones."""
    load_model = worker.load_model

    def get(variant: str, *, change=None, adapted=False, **settings) -> torch.Tensor:
        def load(*args):
            decoder = load_model(*args)
            for layer in decoder.layers:
                bias, split = layer.attention.qkv.bias, layer.attention.split
                if bias is not None:
                    heads = bias.view(-1, layer.attention.head_dim)
                    heads.split(split)[1].view(-1)[::7] *= 50
            if change is not None:
                change(decoder)
            return decoder

        model = tiny_model(variant)
        model.save_pretrained(tmp_path)
        monkeypatch.setattr(worker, "load_model", load)
        if variant != "opt":
            settings["window_size"] = 20
        llm = LLM(str(tmp_path), kv_cache_memory_bytes=4 << 20, **settings)
        ids, request = random_ids(model, 60, seed=3), None
        if adapted:
            request = LoRARequest("it", 1, Adapter(model).save(tmp_path / "adapter"))
        return torch.tensor(llm.score(ids, use_tqdm=False, lora_request=request)[1:])

    return get


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", ["qwen2", "gpt_neox", "gptj", "opt", "qwen3", "mpt_clip"])
def test_scores_stay_the_same_to_the_bit(scores, variant, dtype):
    changed = []

    def balance(decoder) -> None:
        before = decoder.layers[0].attention.qkv.weight.clone()
        balance_keys(decoder)
        changed.append(not torch.equal(decoder.layers[0].attention.qkv.weight, before))

    balanced = scores(variant, change=balance, dtype=dtype)
    assert torch.equal(balanced, scores(variant, dtype=dtype))
    assert changed == [variant in ("qwen2", "gpt_neox", "opt")]


@pytest.mark.parametrize("variant", ["qwen2", "gpt_neox", "opt"])
def test_so_they_do_with_adapters(scores, variant):
    """What an adapter adds to queries and keys is scaled as they are."""
    settings = {"adapted": True, "dtype": "float32"}
    plain = scores(variant, **settings)
    assert torch.equal(scores(variant, change=balance_keys, **settings), plain)
    assert not torch.equal(scores(variant, dtype="float32"), plain)


@pytest.mark.parametrize("size", [1.0, 0.04])  # scales as small as those of large matrices
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_so_they_do_with_quantised_weights(scores, quantization, size):
    changed = []

    def shrink(decoder) -> None:
        for layer in decoder.layers:
            for part in layer.attention.qkv.parts():
                part.scales().mul_(size)

    def balance(decoder) -> None:
        shrink(decoder)
        before = decoder.layers[0].attention.qkv.blocks.clone()
        balance_keys(decoder)
        changed.append(not torch.equal(decoder.layers[0].attention.qkv.blocks, before))

    settings = {"dtype": "float32", "quantization": quantization}
    balanced = scores("qwen2", change=balance, **settings)
    assert torch.equal(balanced, scores("qwen2", change=shrink, **settings))
    assert changed == [True]


@pytest.mark.parametrize("variant", ["qwen2", "gpt_neox", "opt"])
def test_an_int8_cache_loses_less(scores, monkeypatch, variant):
    exact = scores(variant, dtype="float32")
    error = (scores(variant, dtype="float32", kv_cache_dtype="int8") - exact).square().mean()
    monkeypatch.setattr(worker, "balance_keys", lambda decoder: None)
    plain = (scores(variant, dtype="float32", kv_cache_dtype="int8") - exact).square().mean()
    assert 0 < error.sqrt() < 0.75 * plain.sqrt()


@pytest.mark.parametrize("interleaved", [False, True])
def test_pairs_share_a_factor(interleaved):
    power = torch.ones(2, 12)
    power[0, 1], power[1, 10] = 8000.0, 64.0
    factors = _factors(power, 8, interleaved)
    expected = torch.ones(2, 12)
    expected[0, [0, 1] if interleaved else [1, 5]] = 64.0
    expected[1, 10] = 8.0
    assert torch.equal(factors, expected)


def test_keys_that_are_mostly_zero_are_left_alone():
    power = torch.zeros(2, 12)
    power[0, 1] = 100.0
    assert torch.equal(_factors(power, 12, False), torch.ones(2, 12))
