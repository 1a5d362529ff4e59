"""The counts of engines under the names that vLLM gives them, so that its dashboards and alerts
work here. What vLLM counts and this engine does not is left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from paged_stream.engine.outputs import EngineStats, Histogram, TurnStats

_LABELS = ("model_name", "engine")

_GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "num_requests_running": ("Requests in the batch.", lambda stats: stats.num_running),
    "num_requests_waiting": ("Requests that wait for it.", lambda stats: stats.num_waiting),
    "kv_cache_usage_perc": (
        "Share of the blocks that hold tokens, from 0 to 1.",
        lambda stats: stats.num_used_blocks / stats.num_blocks,
    ),
}
_COUNTERS: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "generation_tokens": ("Tokens generated.", lambda stats: stats.num_generated_tokens),
    "prefix_cache_queries": ("Tokens looked for.", lambda stats: stats.num_prefix_queries),
    "prefix_cache_hits": ("Tokens found.", lambda stats: stats.num_prefix_hits),
    "spec_decode_num_draft_tokens": ("Tokens guessed.", lambda stats: stats.num_draft_tokens),
    "spec_decode_num_accepted_tokens": (
        "Guessed tokens that were right.",
        lambda stats: stats.num_accepted_tokens,
    ),
    "num_preemptions": ("Places in the batch given away.", lambda stats: stats.num_preemptions),
}
_HISTOGRAMS: dict[str, tuple[str, Callable[[TurnStats], Histogram]]] = {
    "time_to_first_token_seconds": (
        "Time to first token.",
        lambda turns: turns.first_token_seconds,
    ),
    "request_time_per_output_token_seconds": (
        "Time per token after the first.",
        lambda turns: turns.token_seconds,
    ),
    "e2e_request_latency_seconds": ("Time of a request.", lambda turns: turns.turn_seconds),
    "request_queue_time_seconds": ("Time in the queue.", lambda turns: turns.queue_seconds),
    "request_prompt_tokens": ("Tokens of the prompt.", lambda turns: turns.prompt_tokens),
    "request_generation_tokens": ("Tokens generated.", lambda turns: turns.generated_tokens),
}


def vllm_families(engines: Mapping[int, EngineStats], model: str) -> Iterator[Metric]:
    """Metrics of engines, by the numbers of their replicas."""
    labels = {number: [model, str(number)] for number in engines}
    for table, kind in ((_GAUGES, GaugeMetricFamily), (_COUNTERS, CounterMetricFamily)):
        for name, (text, value) in table.items():
            family = kind(f"vllm:{name}", text, labels=_LABELS)
            for number, stats in engines.items():
                family.add_metric(labels[number], value(stats))
            yield family
    ended = CounterMetricFamily(
        "vllm:request_success", "Requests that ended.", labels=(*_LABELS, "finished_reason")
    )
    for number, stats in engines.items():
        for reason, count in stats.turns.finish_reasons.items():
            ended.add_metric([*labels[number], reason], count)
    yield ended
    for name, (text, histogram) in _HISTOGRAMS.items():
        times = HistogramMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        for number, stats in engines.items():
            times.add_metric(labels[number], *sample_of(histogram(stats.turns)))
        yield times


def sample_of(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """The buckets and the sum as a `HistogramMetricFamily` takes them: each bucket has what is in
    those before it, too."""
    bounds = [*map(str, histogram.bounds), "+Inf"]
    counts = itertools.accumulate(histogram.counts)
    return list(zip(bounds, map(float, counts), strict=True)), histogram.total
