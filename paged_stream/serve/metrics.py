"""An engine's counts in Prometheus' text format, read anew for each request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from paged_stream.engine.outputs import EngineStats

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Name after "paged_stream_", field, help. A name that ends in "_total" is a counter.
_ENGINE = (
    ("running_sequences", "num_running", "Sequences in the current batch."),
    ("waiting_sequences", "num_waiting", "Sequences queued for the batch."),
    ("parked_streams", "num_parked_streams", "Streams that are out of the cache."),
    ("blocks", "num_blocks", "Blocks of the KV cache."),
    ("used_blocks", "num_used_blocks", "Blocks that hold tokens."),
    ("kv_bytes", "kv_bytes", "Bytes of the used blocks."),
    ("kv_reserved_bytes", "kv_reserved_bytes", "Bytes of the whole KV cache."),
    ("kv_resident_bytes", "kv_resident_bytes", "Bytes of the KV cache that are in memory."),
    ("parked_host_bytes", "parked_host_bytes", "K and V that are parked in host memory."),
    ("parked_disk_bytes", "parked_disk_bytes", "K and V that are parked on disk."),
    ("evicted_tokens_total", "num_evicted_tokens", "Tokens that left their windows."),
    ("computed_tokens_total", "num_computed_tokens", "Tokens that went through the model."),
    ("generated_tokens_total", "num_generated_tokens", "Tokens sampled."),
    ("prefix_queries_total", "num_prefix_queries", "Tokens looked for in the prefix cache."),
    ("prefix_hits_total", "num_prefix_hits", "Tokens found in the prefix cache."),
    ("steps_total", "num_steps", "Steps of the engine."),
    ("step_seconds_total", "step_seconds", "Seconds that these steps took."),
    ("started_turns_total", "num_started_turns", "Requests and turns that came to a first step."),
    ("queue_seconds_total", "queue_seconds", "Seconds that these waited for it."),
    ("preemptions_total", "num_preemptions", "Places in the batch given to a higher priority."),
    ("failed_turns_total", "num_failed_turns", "Completions and turns that ended with an error."),
)


def render(metrics: Iterable[Metric]) -> bytes:
    """Metrics as text."""
    registry = CollectorRegistry()
    registry.register(_Collector(metrics))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def engine_families(engines: Mapping[int, EngineStats]) -> Iterator[Metric]:
    """What engines count, by the numbers of their replicas."""
    for name, field, text in _ENGINE:
        yield family(name, text, {n: getattr(stats, field) for n, stats in engines.items()})


def family(name: str, text: str, values: Mapping[Any, float]) -> Metric:
    """Make a metric with a value per number of a replica, or under ``None`` with a single value."""
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    metric = kind(f"paged_stream_{name}", text, labels=() if None in values else ("replica",))
    for number, value in values.items():
        metric.add_metric([] if number is None else [str(number)], value)
    return metric
