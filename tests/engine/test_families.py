"""Every family through the engine, against transformers' own modules."""

from __future__ import annotations

import pytest
import torch

from paged_stream import LLM, EngineConfig, LLMEngine, SamplingParams
from paged_stream.setting_kinds import Dtype
from tests.family_reference import (
    ABSOLUTE_POSITION_VARIANTS,
    STREAMING_VARIANTS,
    VARIANTS,
    full_hidden_states,
    full_logits,
    published_hidden_states,
    published_logits,
    random_ids,
    tiny_model,
)

TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Tiny models by variant, each with the folder that it was saved to."""
    made = {}

    def get(variant: str):
        if variant not in made:
            model = tiny_model(variant)
            folder = tmp_path_factory.mktemp(variant)
            model.save_pretrained(folder)
            made[variant] = model, folder
        return made[variant]

    return get


def make_llm(folder, *, chunk: int = 24, dtype: Dtype = "float32", **settings) -> LLM:
    return LLM(
        str(folder),
        max_num_batched_tokens=chunk,
        max_num_seqs=4,
        dtype=dtype,
        device="cpu",
        kv_cache_memory_bytes=32 << 20,
        **settings,
    )


def run(llm: LLM, prompts: list[list[int]], max_tokens: list[int]):
    """Log-probabilities [tokens - 1, vocab] of each prompt and what follows, and all its ids."""
    vocab_size = llm.model_config.vocab_size
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=count,
            ignore_eos=True,
            logprobs=vocab_size,
            prompt_logprobs=vocab_size,
        )
        for count in max_tokens
    ]
    for prompt, result in zip(prompts, llm.generate(prompts, params, use_tqdm=False), strict=True):
        output = result.outputs[0]
        assert output.logprobs is not None and result.prompt_logprobs is not None
        entries = [*result.prompt_logprobs[1:], *output.logprobs]
        rows = torch.empty(len(entries), vocab_size)
        for row, entry in zip(rows, entries, strict=True):
            assert entry is not None and entry.top is not None
            row[list(entry.top)] = torch.tensor(list(entry.top.values()))
        yield rows, prompt + list(output.token_ids)


def close(actual: torch.Tensor, logits: torch.Tensor) -> None:
    expected = logits.double().log_softmax(-1)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_attention_equals_transformers(saved, variant):
    model, folder = saved(variant)
    prompts = [random_ids(model, n, seed=n) for n in (44, 3, 40, 28)]
    window = None if variant in ABSOLUTE_POSITION_VARIANTS else 48
    # Rotary frequencies that depend on length are those of 48 visible tokens.
    llm = make_llm(folder, num_sink_tokens=0, window_size=window, block_size=8)
    for actual, ids in run(llm, prompts, [4, 20, 8, 20]):
        padded = ids + [0] * (48 - len(ids))
        close(actual, full_logits(model, padded)[: len(ids) - 1])


# With a local window of 9: all of it inside the window, none of it, and in between.
@pytest.mark.parametrize(("sinks", "window"), [(4, 20), (2, 5), (5, 6)])
@pytest.mark.parametrize("variant", STREAMING_VARIANTS)
def test_streaming_equals_the_published_algorithm(saved, variant, sinks, window):
    """Chunks of a prompt and decoding sequences share batches; four run at a time."""
    model, folder = saved(variant)
    lengths = [5 * window + 3, 1, 2 * window, 3 * window - 1, sinks + window]
    prompts = [random_ids(model, n, seed=n) for n in lengths]
    max_tokens = [window, 2 * window, 9, 4, 13]
    expected = {}
    for chunk in (7, 64):
        llm = make_llm(folder, num_sink_tokens=sinks, window_size=window, chunk=chunk)
        for actual, ids in run(llm, prompts, max_tokens):
            key = tuple(ids)
            if key not in expected:
                expected[key] = published_logits(model, ids[:-1], sinks, window)
            close(actual, expected[key])
    assert max(map(len, expected)) >= 6 * window


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_as_good_as_transformers(saved, variant):
    """Errors against float32 are no larger than those of transformers' own bfloat16."""
    model, folder = saved(variant)
    prompts = [random_ids(model, 48, seed=n) for n in range(4)]
    window = None if variant in ABSOLUTE_POSITION_VARIANTS else 49
    llm = make_llm(folder, num_sink_tokens=0, window_size=window, dtype="bfloat16")
    errors, oracle_errors = [], []
    for actual, ids in run(llm, prompts, [1] * 4):
        exact = full_logits(model, ids)[:-1].log_softmax(-1)
        oracle = full_logits(model, ids, dtype=torch.bfloat16)[:-1]
        errors.append(actual - exact)
        oracle_errors.append(oracle.float().log_softmax(-1) - exact)
    ratio = torch.cat(errors).square().mean() / torch.cat(oracle_errors).square().mean()
    assert ratio.sqrt() < 1.1


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_int8_cache_costs_less_than_bfloat16(saved, variant):
    """Rounding K and V to int8 does less harm than rounding everything to bfloat16."""
    model, folder = saved(variant)
    prompts = [random_ids(model, 48, seed=n) for n in range(4)]
    sinks, window = (0, None) if variant in ABSOLUTE_POSITION_VARIANTS else (4, 20)
    results = []
    for settings in ({}, {"kv_cache_dtype": "int8"}, {"dtype": "bfloat16"}):
        llm = make_llm(folder, num_sink_tokens=sinks, window_size=window, **settings)
        results.append(torch.cat([rows for rows, _ in run(llm, prompts, [1] * 4)]))
    exact, int8, bfloat16 = results
    error, limit = ((rows - exact).square().mean().sqrt() for rows in (int8, bfloat16))
    assert 0 < error < limit


# Embeddings


def assert_embeds(llm: LLM, prompts: list[list[int]], hidden: list[torch.Tensor]) -> None:
    """Embeddings of prompts are their hidden states, divided by their lengths."""
    outputs = llm.embed(prompts, use_tqdm=False)
    found = torch.tensor([output.outputs.embedding for output in outputs])
    expected = torch.nn.functional.normalize(torch.stack(hidden).float(), dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_embeddings_equal_transformers(saved, variant):
    model, folder = saved(variant)
    prompts = [random_ids(model, n, seed=n) for n in (44, 3, 1, 28, 48)]
    window = None if variant in ABSOLUTE_POSITION_VARIANTS else 48
    llm = make_llm(folder, num_sink_tokens=0, window_size=window, block_size=8)
    padded = [ids + [0] * (48 - len(ids)) for ids in prompts]
    rows = [full_hidden_states(model, ids) for ids in padded]
    lasts = [len(ids) - 1 for ids in prompts]
    assert_embeds(llm, prompts, [each[last] for each, last in zip(rows, lasts, strict=True)])


@pytest.mark.parametrize("variant", STREAMING_VARIANTS)
def test_embeddings_of_prompts_that_stream_through_the_window(saved, variant):
    model, folder = saved(variant)
    prompts = [random_ids(model, n, seed=n) for n in (53, 10, 19)]
    llm = make_llm(folder, num_sink_tokens=3, window_size=11, chunk=7)
    hidden = [published_hidden_states(model, ids, 3, 11)[-1] for ids in prompts]
    assert_embeds(llm, prompts, hidden)


# Rotary frequencies that depend on length


def test_streams_keep_to_the_frequencies_of_the_engine(saved):
    _, folder = saved("phi3_longrope")  # long factors beyond 64 visible tokens
    config = {"dtype": "float32", "kv_cache_memory_bytes": 4 << 20}
    engine = LLMEngine(EngineConfig(model=str(folder), window_size=40, **config))
    engine.open_stream(window_size=60)
    with pytest.raises(ValueError, match="window_size=61: this model's rotary frequencies depend"):
        engine.open_stream(window_size=61)
    long_engine = LLMEngine(EngineConfig(model=str(folder), window_size=61, **config))
    long_engine.open_stream(window_size=200)
    with pytest.raises(ValueError, match="window_size=60: this model's rotary frequencies depend"):
        long_engine.open_stream(window_size=60)


def test_dynamic_frequencies_hold_for_one_length_beyond_the_trained_one(saved):
    _, folder = saved("llama_dynamic")  # trained for 32 tokens
    config = {"dtype": "float32", "kv_cache_memory_bytes": 4 << 20}
    engine = LLMEngine(EngineConfig(model=str(folder), window_size=28, **config))
    engine.open_stream(window_size=10)
    long_engine = LLMEngine(EngineConfig(model=str(folder), window_size=44, **config))
    long_engine.open_stream(num_sink_tokens=8, window_size=40)
    with pytest.raises(ValueError, match="window_size=43"):
        long_engine.open_stream(window_size=43)


# Models whose layers all have a window of their own


def test_default_window_is_the_models_own(saved):
    _, folder = saved("mistral")
    assert make_llm(folder).sink_window.window_size == 9
    _, folder = saved("gemma2")  # half of its layers see everything
    assert make_llm(folder).sink_window.window_size == 508


# Learned absolute positions


@pytest.fixture
def short_gpt2(tmp_path):
    model = tiny_model("gpt2")
    model.config.n_positions = 40
    model.transformer.wpe.weight.data = model.transformer.wpe.weight.data[:40].clone()
    model.save_pretrained(tmp_path)
    return model, tmp_path


def test_learned_positions_refuse_a_window(short_gpt2):
    _, folder = short_gpt2
    with pytest.raises(ValueError, match="window_size=16: gpt2 has learned an embedding for each"):
        make_llm(folder, window_size=16)
    with pytest.raises(ValueError, match="window_size=16"):
        make_llm(folder).open_stream(window_size=16)


def test_learned_positions_work_up_to_the_trained_length(short_gpt2):
    model, folder = short_gpt2
    llm = make_llm(folder, block_size=16)
    ids = random_ids(model, 40)
    greedy = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=None)
    output = llm.generate(ids[:30], greedy, use_tqdm=False)[0].outputs[0]
    assert output.finish_reason == "length"
    expected = model.generate(torch.tensor([ids[:30]]), max_new_tokens=10, do_sample=False)
    assert list(output.token_ids) == expected[0, 30:].tolist()
    logprobs = full_logits(model, ids).log_softmax(-1)[range(39), ids[1:]]
    torch.testing.assert_close(torch.tensor(llm.score(ids)[1:]), logprobs, rtol=0, atol=TOLERANCE)
    for call in (llm.score, lambda ids: llm.generate(ids, greedy)):
        with pytest.raises(ValueError, match="cannot go beyond its trained length of 40"):
            call([*ids, 1])


def test_a_stream_on_learned_positions_ends_at_the_trained_length(short_gpt2):
    model, folder = short_gpt2
    engine = make_llm(folder)
    stream, ids = engine.open_stream(), random_ids(model, 30)
    stream.append(ids)
    with pytest.raises(ValueError, match=r"trained length of 40 tokens, got 41"):
        stream.append([1] * 11)
    greedy = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=None)
    first = [t for delta in stream.generate(greedy) for t in delta.delta_token_ids]
    expected = model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False)[0, 30:]
    assert first == expected.tolist()
    # The last position is still to be computed, and gives one more token; then the stream is full.
    assert len([t for delta in stream.generate(greedy) for t in delta.delta_token_ids]) == 1
    with pytest.raises(ValueError, match="trained length of 40 tokens, got 41"):
        stream.generate(greedy)
