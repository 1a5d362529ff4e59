"""Metrics of engines that a program has made itself."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from paged_stream import LLM, AsyncLLMEngine, EngineCollector, EngineConfig, SamplingParams
from paged_stream.serve.vllm_metrics import sample_of
from tests.engine.test_turn_stats import tallied
from tests.serve.services import SETTINGS

PARAMS = SamplingParams(max_tokens=6, ignore_eos=True)


def values_of(registry):
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_an_engine(folder):
    registry = CollectorRegistry()
    with LLM(str(folder), **SETTINGS) as llm:
        registry.register(EngineCollector(llm, "tiny"))
        llm.generate(["a", "b"], PARAMS, use_tqdm=False)
        values = values_of(registry)
    assert values["paged_stream_generated_tokens_total", "0"] == 12
    assert values["paged_stream_finished_turns_total", "0", "length"] == 2
    assert values["vllm:request_success_total", "0", "length", "tiny"] == 2
    assert values["vllm:generation_tokens_total", "0", "tiny"] == 12
    for stage in ("time_to_first_token", "e2e_request_latency", "request_queue_time"):
        name = f"vllm:{stage}_seconds"
        assert values[f"{name}_bucket", "+Inf", "0", "tiny"] == 2
        assert values[f"{name}_count", "0", "tiny"] == 2
        assert values[f"{name}_sum", "0", "tiny"] > 0
    assert values["vllm:request_generation_tokens_bucket", "0", "16.0", "tiny"] == 2
    assert values["vllm:request_generation_tokens_bucket", "0", "4.0", "tiny"] == 0
    assert values_of(registry) == {}  # of an engine that is closed


def test_an_asynchronous_engine(folder):
    registry = CollectorRegistry()

    async def run():
        async with AsyncLLMEngine(EngineConfig(model=str(folder), **SETTINGS)) as engine:
            registry.register(EngineCollector(engine, "tiny"))
            async for _ in engine.generate("a", PARAMS):
                pass
            return await asyncio.to_thread(values_of, registry)

    assert asyncio.run(run())["paged_stream_generated_tokens_total", "0"] == 6
    assert values_of(registry) == {}


def test_buckets_have_what_is_in_those_before():
    buckets, total = sample_of(tallied([0.25, 0.5, 1.0, 9.0]))
    assert buckets == [("0.5", 2.0), ("1.0", 3.0), ("8.0", 3.0), ("+Inf", 4.0)]
    assert total == 10.75
