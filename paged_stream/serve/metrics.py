"""A pool's counts in Prometheus' text format, read anew for each request."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from paged_stream.pool.async_ray_llm import PoolStats

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Name behind "paged_stream_", field, help. A name that ends in "_total" is a counter.
_POOL = (
    ("wanted_replicas", "num_replicas", "Replicas that are wanted."),
    ("open_streams", "num_streams", "Open streams, those on no replica included."),
    ("lost_replicas_total", "num_lost_replicas", "Replicas that died."),
    ("restored_streams_total", "num_restored_streams", "Streams brought to another replica."),
    ("replayed_tokens_total", "num_replayed_tokens", "Tokens computed again for these streams."),
)
_REPLICA = (
    ("load", "load", "Requests and turns that the pool has sent."),
    ("streams", "num_streams", "Streams that live here."),
)
# The engine's own `num_streams` is the replica's, seen from the other side.
_ENGINE = (
    ("running_sequences", "num_running", "Sequences in the current batch."),
    ("waiting_sequences", "num_waiting", "Sequences queued for the batch."),
    ("parked_streams", "num_parked_streams", "Streams that are out of the cache."),
    ("blocks", "num_blocks", "Blocks of the KV cache."),
    ("used_blocks", "num_used_blocks", "Blocks that hold tokens."),
    ("kv_bytes", "kv_bytes", "Bytes of the used blocks."),
    ("kv_reserved_bytes", "kv_reserved_bytes", "Bytes of the whole KV cache."),
    ("kv_resident_bytes", "kv_resident_bytes", "Bytes of the KV cache that are in memory."),
    ("parked_host_bytes", "parked_host_bytes", "K and V of parked streams in host memory."),
    ("parked_disk_bytes", "parked_disk_bytes", "K and V of parked streams on disk."),
    ("evicted_tokens_total", "num_evicted_tokens", "Tokens that left their windows."),
    ("computed_tokens_total", "num_computed_tokens", "Tokens that went through the model."),
    ("generated_tokens_total", "num_generated_tokens", "Tokens sampled."),
    ("prefix_queries_total", "num_prefix_queries", "Tokens looked for in the prefix cache."),
    ("prefix_hits_total", "num_prefix_hits", "Tokens found in the prefix cache."),
    ("steps_total", "num_steps", "Steps of the engine."),
    ("step_seconds_total", "step_seconds", "Seconds that these steps took."),
    ("started_turns_total", "num_started_turns", "Requests and turns that came to a first step."),
    ("queue_seconds_total", "queue_seconds", "Seconds that these waited for it."),
)


def render(stats: PoolStats) -> bytes:
    """The body of an answer to Prometheus. A replica that takes the place of another has a number
    of its own, so no counter ever falls."""
    registry = CollectorRegistry()
    registry.register(_PoolCollector(stats))
    return generate_latest(registry)


class _PoolCollector(Collector):
    def __init__(self, stats: PoolStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats
        yield _family("ready_replicas", "Replicas that are ready.", {None: len(stats.replicas)})
        for name, field, text in _POOL:
            yield _family(name, text, {None: getattr(stats, field)})
        for name, field, text in _REPLICA:
            yield _family(name, text, {r.number: getattr(r, field) for r in stats.replicas})
        for name, field, text in _ENGINE:
            yield _family(name, text, {r.number: getattr(r.engine, field) for r in stats.replicas})


def _family(name: str, text: str, values: dict[int | None, float]) -> Metric:
    """A metric by number of replica, or with the one value that the pool has."""
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    family = kind(f"paged_stream_{name}", text, labels=() if None in values else ("replica",))
    for number, value in values.items():
        family.add_metric([] if number is None else [str(number)], value)
    return family
