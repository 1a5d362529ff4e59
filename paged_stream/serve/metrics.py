"""What an engine or a pool counts, for Prometheus: read anew whenever somebody asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from paged_stream.engine.outputs import EngineStats
from paged_stream.pool.stats import PoolStats
from paged_stream.serve.vllm_metrics import sample_of, vllm_families

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
    ("draft_tokens_total", "num_draft_tokens", "Tokens guessed and computed."),
    ("accepted_tokens_total", "num_accepted_tokens", "Guessed tokens that were right."),
    ("preemptions_total", "num_preemptions", "Places in the batch given to a higher priority."),
    ("failed_turns_total", "num_failed_turns", "Completions and turns that ended with an error."),
)
# Of `TurnStats`: what finished completions and turns were like.
_TURNS = (
    ("turn_queue_seconds", "queue_seconds", "Time from the arrival to the first step."),
    ("first_token_seconds", "first_token_seconds", "Time from the arrival to the first token."),
    ("token_seconds", "token_seconds", "Time of each further token, on the average of a turn."),
    ("turn_seconds", "turn_seconds", "Time from the arrival to the end."),
    ("turn_prompt_tokens", "prompt_tokens", "Tokens to compute before it generated."),
    ("turn_generated_tokens", "generated_tokens", "Tokens that it generated."),
)
# Of `PoolStats`, and of `ReplicaStats`.
_POOL = (
    ("wanted_replicas", "num_replicas", "Replicas that are wanted."),
    ("lost_replicas_total", "num_lost_replicas", "Replicas that died."),
    ("restored_streams_total", "num_restored_streams", "Streams brought to another replica."),
    ("replayed_tokens_total", "num_replayed_tokens", "Tokens computed again for these streams."),
)
_REPLICA = (
    ("load", "load", "Requests and turns that the pool has sent."),
    ("streams", "num_streams", "Streams that live here."),
)


def render(stats: EngineStats, model: str) -> bytes:
    """Metrics as text, of the type `CONTENT_TYPE`.

    Args:
        stats: those of an engine or of a pool.
        model: its name.
    """
    registry = CollectorRegistry()
    registry.register(_Fixed(families(stats, model)))
    return generate_latest(registry)


class _Fixed(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def families(stats: EngineStats, model: str) -> Iterator[Metric]:
    """Metrics of an engine, which is replica 0, or of a pool. A replica that takes the place of
    another has a number of its own, so no counter ever falls."""
    yield _family("open_streams", "Open streams.", {None: stats.num_streams})
    engines = {0: stats}
    if isinstance(stats, PoolStats):
        engines = {each.number: each.engine for each in stats.replicas}
        yield from _pool_families(stats)
    for name, field, text in _ENGINE:
        yield _family(name, text, {n: getattr(each, field) for n, each in engines.items()})
    reasons = CounterMetricFamily(
        "paged_stream_finished_turns",
        "Completions and turns that are finished.",
        labels=("replica", "reason"),
    )
    for number, each in engines.items():
        for reason, count in each.turns.finish_reasons.items():
            reasons.add_metric([str(number), reason], count)
    yield reasons
    for name, field, text in _TURNS:
        family = HistogramMetricFamily(f"paged_stream_{name}", text, labels=("replica",))
        for number, each in engines.items():
            family.add_metric([str(number)], *sample_of(getattr(each.turns, field)))
        yield family
    yield from vllm_families(engines, model)


def _pool_families(stats: PoolStats) -> Iterator[Metric]:
    yield _family("ready_replicas", "Replicas that are ready.", {None: len(stats.replicas)})
    for name, field, text in _POOL:
        yield _family(name, text, {None: getattr(stats, field)})
    for name, field, text in _REPLICA:
        yield _family(name, text, {r.number: getattr(r, field) for r in stats.replicas})


def _family(name: str, text: str, values: Mapping[Any, float]) -> Metric:
    """A metric with a value per number of a replica, or under ``None`` with a single value."""
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    metric = kind(f"paged_stream_{name}", text, labels=() if None in values else ("replica",))
    for number, value in values.items():
        metric.add_metric([] if number is None else [str(number)], value)
    return metric
