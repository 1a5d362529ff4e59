"""Several ranks compute what one does: requests, live streams, parking, saved streams."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from paged_stream import (
    LLM,
    AsyncLLMEngine,
    EngineConfig,
    EngineStoppedError,
    SamplingParams,
    StructuredOutputsParams,
)
from paged_stream.engine.llm_engine import LLMEngine
from paged_stream.engine.outputs import RequestOutput
from paged_stream.executor.ray import RayExecutor
from tests.executor.rank_threads import ThreadExecutor
from tests.family_reference import ABSOLUTE_POSITION_VARIANTS, VARIANTS, tiny_model
from tests.reference import tiny_llama

pytestmark = pytest.mark.ray

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
LETTERS = SamplingParams(
    temperature=0.0, max_tokens=9, structured_outputs=StructuredOutputsParams(regex="[a-f]{6}")
)
SETTINGS: dict[str, Any] = {
    "block_size": 8,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 32,
    "dtype": "float32",
    "kv_cache_memory_bytes": 1 << 20,
}
# Cannot be split over all heads together; 3 heads; as others but for what every rank has whole.
LEFT_OUT = {"olmo2", "falcon_7b", "llama_linear", "llama_yarn", "llama_dynamic", "mistral_wide"}


@pytest.fixture
def in_threads(monkeypatch):
    monkeypatch.setattr("paged_stream.engine.loaded_engine.make_executor", ThreadExecutor)


def prompts(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in (3, 50, 17)]


def logprobs(result: RequestOutput) -> list[float]:
    """Of the prompt's tokens but the first, and of those that followed."""
    answer = result.outputs[0].logprobs
    assert answer is not None and result.prompt_logprobs is not None
    assert result.prompt_logprobs[0] is None
    return [e.logprob for e in (*result.prompt_logprobs[1:], *answer) if e is not None]


def assert_ranks_agree(folder, sizes=(1, 2), tolerance=1e-4, **settings) -> None:
    params = SamplingParams(
        temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=3, prompt_logprobs=0
    )
    results, fingerprints = [], set()
    for size in sizes:
        llm = LLM(str(folder), **(SETTINGS | settings), tensor_parallel_size=size)
        texts = prompts(llm.model_config.vocab_size)
        results.append(llm.generate(texts, params, use_tqdm=False))
        fingerprints.add(llm.core.executor.fingerprint)
    assert len(fingerprints) == 1
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert one.outputs[0].token_ids == other.outputs[0].token_ids
            pairs = zip(logprobs(one), logprobs(other), strict=True)
            assert max(abs(a - b) for a, b in pairs) < tolerance


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in LEFT_OUT])
def test_every_family(in_threads, tmp_path, variant):
    tiny_model(variant).save_pretrained(tmp_path)
    window = {} if variant in ABSOLUTE_POSITION_VARIANTS else {"window_size": 20}
    assert_ranks_agree(tmp_path, **window)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ({"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}, {}),
        ({"attention_bias": True}, {"kv_cache_dtype": "int8"}),
        ({"tie_word_embeddings": True, "vocab_size": 95}, {}),
        ({"head_dim": 32, "intermediate_size": 192, "hidden_size": 96}, {"quantization": "int8"}),
    ],
    ids=["one KV head, biases", "K and V in int8", "tied head, odd vocabulary", "quantised"],
)
def test_more_ranks(in_threads, tmp_path, model, settings):
    """Three and six ranks for six heads: KV heads are split or on several of them."""
    kv_heads = {"num_key_value_heads": 3}
    make = kv_heads | {"intermediate_size": 96} | model
    tiny_llama(2, **make).save_pretrained(tmp_path)
    # Activations of quantised weights are rounded to 15 bits, of slightly different numbers.
    tolerance = 1e-3 if "quantization" in settings else 1e-4
    assert_ranks_agree(tmp_path, (1, 3, 6), tolerance, window_size=24, **settings)


def turns(stream, count=3):
    tokens = []
    for number in range(count):
        stream.append([5 + number, 60, 7, 8])
        tokens += [t for delta in stream.generate(GREEDY) for t in delta.delta_token_ids]
        tokens += [t for delta in stream.generate(LETTERS) for t in delta.delta_token_ids]
    return tokens


def check_streams(folder, tmp_path, **settings) -> None:
    """Turns past the window, parked, cut, saved by two ranks and loaded by one, and back."""
    engines = {
        size: LLMEngine(
            EngineConfig(
                model=str(folder),
                window_size=24,
                tensor_parallel_size=size,
                parking_memory_bytes=0,
                **(SETTINGS | settings),
            )
        )
        for size in (1, 2)
    }
    expected, stream = (engines[size].open_stream() for size in (1, 2))
    assert turns(stream) == turns(expected)
    for each in (stream, expected):
        each.park()
    assert stream.stats().location == expected.stats().location == "disk"
    assert stream.stats().kv_bytes == expected.stats().kv_bytes
    assert turns(stream, 1) == turns(expected, 1)
    for each in (stream, expected):
        each.cut(each.position - 12, each.position - 6)
    assert turns(stream, 1) == turns(expected, 1)
    for size in (1, 2):
        stream.save(tmp_path / "stream")
        stream.close()
        stream = engines[size].load_stream(tmp_path / "stream")
        assert turns(stream, 1) == turns(expected, 1)
    engines[2].close()


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
def test_streams_go_on_under_another_size(in_threads, folder, tmp_path, kv_cache_dtype):
    check_streams(folder, tmp_path, kv_cache_dtype=kv_cache_dtype)


def test_streams_of_ranks_in_processes(ray, folder, tmp_path):
    check_streams(folder, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor_parallel_size": 5}, "tensor_parallel_size=5 must divide"),
        ({"tensor_parallel_size": 2, "num_threads": 2}, "needs 4 CPUs, and the Ray cluster has 2"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be >= 1, got 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(ray, folder, settings, message):
    with pytest.raises(ValueError, match=message):
        LLM(str(folder), **SETTINGS, window_size=24, **settings)


async def _lose_a_rank(ray, folder):
    config = EngineConfig(model=str(folder), window_size=24, tensor_parallel_size=2, **SETTINGS)
    async with AsyncLLMEngine(config) as engine:
        endless = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
        waiting = [engine.generate([3, 4, 5], endless) for _ in range(2)]
        for deltas in waiting:
            await anext(deltas)
        ray.kill(engine.core.executor._actors[1])
        for deltas in waiting:
            with pytest.raises(EngineStoppedError, match="rank 1 died"):
                async for _ in deltas:
                    pass
        with pytest.raises(EngineStoppedError, match="rank 1 died"):
            await engine.open_stream()


def test_a_rank_that_dies_reaches_every_waiter(ray, folder, monkeypatch):
    monkeypatch.setattr(RayExecutor, "notice_seconds", 600.0)  # Ray may hear of it late
    asyncio.run(_lose_a_rank(ray, folder))
