"""What is left of a stream after a cut is what the published algorithm has left."""

from __future__ import annotations

import pytest
import torch

from paged_stream import EngineConfig, LLMEngine, SamplingParams
from tests import family_reference
from tests.engine.stream_oracle import VOCAB, Oracle, text_ids
from tests.reference import tiny_llama


def whole_vocab(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, logprobs=VOCAB)


def run(stream, num_tokens: int) -> tuple[list[int], torch.Tensor]:
    """Tokens of a turn, and log-probabilities [tokens, vocab] at their places."""
    deltas = list(stream.generate(whole_vocab(num_tokens)))
    logprobs = [
        [entry.top[token_id] for token_id in range(VOCAB)]
        for delta in deltas
        for entry in delta.logprobs or ()
    ]
    return [token for delta in deltas for token in delta.delta_token_ids], torch.tensor(logprobs)


ROPES = {
    "default": {},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
        }
    },
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("sinks, window, block_size", [(0, 7, 4), (4, 24, 8), (9, 20, 3)])
def test_logits_after_cuts_are_the_oracles(tmp_path, rope, sinks, window, block_size):
    model = tiny_llama(0, **ROPES[rope])
    model.save_pretrained(tmp_path)
    engine = LLMEngine(
        EngineConfig(
            model=str(tmp_path),
            num_sink_tokens=sinks,
            window_size=window,
            block_size=block_size,
            max_num_seqs=4,
            max_num_batched_tokens=16,
            kv_cache_memory_bytes=1 << 20,
        )
    )
    stream, oracle = engine.open_stream(), Oracle(sinks, window, model.to(torch.float64))
    for turn, length in enumerate((sinks + 6, 30, 3, 50, 8, 1)):
        stream.append(ids := text_ids(length, turn))
        oracle.pending += ids
        oracle.settle()
        first, stop = oracle.first_kept, oracle.stream.position
        spans = [(stop - 2, stop - 1), (first, first + 2), (first + 1, stop), (first, stop)]
        start, end = spans[turn % 4]
        stream.cut(start, end)
        oracle.cut(start, end)
        assert stream.stats().window_start == oracle.first_kept == first + end - start
        tokens, logprobs = run(stream, 6)
        for token_id, row in zip(tokens, logprobs, strict=True):
            torch.testing.assert_close(
                row, oracle.logits().log_softmax(-1).float(), atol=1e-4, rtol=0
            )
            oracle.pending = [token_id]
        engine.core.scheduler.check_integrity()


ONE_LAYER = {
    "gptj": {"n_layer": 1},
    "gpt_neox": {"num_hidden_layers": 1},
    "mpt": {"n_layers": 1},
    "falcon_rw": {"num_hidden_layers": 1},
    "falcon_alibi_parallel": {"num_hidden_layers": 1},
    "gemma3": {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]},
    "gemma3-full": {"num_hidden_layers": 1, "layer_types": ["full_attention"]},
    "phi3_longrope": {"num_hidden_layers": 1},
    "llama_yarn": {"num_hidden_layers": 1},
    "stablelm": {"num_hidden_layers": 1},
    "qwen2": {"num_hidden_layers": 1, "max_window_layers": 1},
    "smollm3": {"num_hidden_layers": 1, "no_rope_layers": [0]},
}


@pytest.mark.parametrize("name", ONE_LAYER)
def test_a_cut_in_a_one_layer_model_equals_the_text_without_the_span(tmp_path, monkeypatch, name):
    """There K and V depend on their own token alone, so nothing has read what is removed."""
    variant = name.partition("-")[0]
    variants = family_reference.VARIANTS
    monkeypatch.setitem(variants, variant, variants[variant] | ONE_LAYER[name])
    family_reference.tiny_model(variant).save_pretrained(tmp_path)
    engine = LLMEngine(
        EngineConfig(
            model=str(tmp_path),
            num_sink_tokens=3,
            window_size=60,
            block_size=4,
            max_num_seqs=4,
            max_num_batched_tokens=16,
            dtype="float32",
            kv_cache_memory_bytes=1 << 20,
            enable_prefix_caching=False,
        )
    )
    ids = text_ids(40)
    for start, end in ((3, 5), (7, 21), (30, 39)):
        stream, fresh = engine.open_stream(), engine.open_stream()
        stream.append(ids)
        stream.cut(start, end)
        fresh.append(ids[:start] + ids[end:])
        (tokens, logprobs), (expected_tokens, expected) = run(stream, 12), run(fresh, 12)
        assert tokens == expected_tokens
        torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)
        stream.park()  # and the same again after a rest
        agreed = [run(either, 4)[0] for either in (stream, fresh)]
        assert agreed[0] == agreed[1]
