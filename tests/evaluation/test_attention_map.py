"""Recorded attention against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from paged_stream.evaluation.attention_map import AttentionProbe
from tests.family_reference import tiny_model
from tests.reference import random_ids, tiny_llama


@pytest.fixture(scope="module")
def model():
    return tiny_llama(0)


def attentions(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """[layers, heads, T, T] as transformers computes them."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = model(torch.tensor([ids]), output_attentions=True).attentions
    return torch.cat(found)


def test_probabilities_equal_transformers_and_sum_to_one(bare_folder, model):
    ids = random_ids(model, 300)  # more than one part of queries
    probe = AttentionProbe(str(bare_folder), dtype="float32")
    shares = probe.sink_shares(ids, num_sinks=len(ids), first_query=0)
    expected = attentions(model, ids)
    assert torch.allclose(shares, expected.mean(dim=2), atol=1e-5)
    assert torch.allclose(shares.sum(dim=-1), torch.ones(shares.shape[:2]), atol=1e-5)


def test_shares_are_those_of_later_queries(bare_folder, model):
    ids = random_ids(model, 60)
    probe = AttentionProbe(str(bare_folder), dtype="float32")
    shares = probe.sink_shares(ids, num_sinks=4, first_query=20)
    assert torch.allclose(shares, attentions(model, ids)[:, :, 20:, :4].mean(dim=2), atol=1e-5)


def test_logits_are_averaged_and_their_softmax_is_the_probability(bare_folder, model):
    one, other = random_ids(model, 16, seed=1), random_ids(model, 16, seed=2)
    probe = AttentionProbe(str(bare_folder), dtype="float32")
    logits = probe.average_logits([one])
    hidden = torch.ones(16, 16).triu(1).bool()
    assert logits.isnan().eq(hidden).all()
    weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
    assert torch.allclose(weights, attentions(model, one), atol=1e-5)
    both = probe.average_logits([one, other])
    mean = (logits + probe.average_logits([other])) / 2
    assert torch.allclose(both[~both.isnan()], mean[~mean.isnan()], atol=1e-5)


@pytest.mark.parametrize("variant", ["gemma2", "mpt", "mistral"])
def test_families_with_attention_of_their_own(tmp_path, variant):
    """Soft caps, ALiBi and layers with a window of their own."""
    model = tiny_model(variant)
    model.save_pretrained(tmp_path)
    ids = random_ids(model, 60)
    probe = AttentionProbe(str(tmp_path), dtype="float32")
    shares = probe.sink_shares(ids, num_sinks=8, first_query=30)
    expected = attentions(model, ids)[:, :, 30:, :8].mean(dim=2)
    assert torch.allclose(shares, expected, atol=1e-5)
