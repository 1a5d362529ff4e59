"""Heads of any size, also those that the kernels take with zeros at their end."""

from __future__ import annotations

import pytest
import torch

from tests import family_reference
from tests.engine.test_families import close, make_llm, run
from tests.family_reference import full_logits, published_logits, random_ids, tiny_model

# Q, K and V apart; in one matrix; in one by heads, with biases and partial rotary; without rotary.
VARIANTS = ("llama2", "phi3", "gpt_neox", "mpt")


@pytest.fixture
def sized(monkeypatch, tmp_path):
    def make(variant: str, head_dim: int):
        settings = dict(family_reference.VARIANTS[variant])
        hidden = "d_model" if variant == "mpt" else "hidden_size"
        settings[hidden] = 4 * head_dim
        monkeypatch.setitem(family_reference.VARIANTS, "sized", settings)
        model = tiny_model("sized")
        model.save_pretrained(tmp_path)
        return model

    return make


@pytest.mark.parametrize("head_dim", [20, 80, 96, 100, 112, 128, 192, 256])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_equal_transformers(sized, tmp_path, variant, head_dim):
    model = sized(variant, head_dim)
    prompts = [random_ids(model, n, seed=n) for n in (30, 3)]
    llm = make_llm(tmp_path, num_sink_tokens=0, window_size=48)
    for actual, ids in run(llm, prompts, [4, 20]):
        expected = full_logits(model, ids)[: len(ids) - 1].double().log_softmax(-1)
        # Wide models without rotary have logits of a hundred, of which float32 has fewer digits.
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_padded_heads_stream(sized, tmp_path, variant, kv_cache_dtype):
    model = sized(variant, 20)
    llm = make_llm(tmp_path, num_sink_tokens=4, window_size=20, kv_cache_dtype=kv_cache_dtype)
    assert (llm.model_config.head_dim, llm.model_config.head_padding) == (24, 4)
    (result,) = run(llm, [random_ids(model, 70, seed=1)], [20])
    actual, ids = result
    expected = published_logits(model, ids[:-1], 4, 20)
    if kv_cache_dtype == "auto":
        close(actual, expected)
    else:
        expected = expected.double().log_softmax(-1)
        error = actual.double() - expected
        assert 0 < error.std() < 0.02 * expected.std()
