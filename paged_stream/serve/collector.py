"""Prometheus metrics of an engine that a program has made itself, without a service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from paged_stream.engine.api import EngineApi
from paged_stream.engine.async_engine import AsyncLLMEngine
from paged_stream.engine.lifetime import EngineStoppedError
from paged_stream.pool.errors import PoolError
from paged_stream.serve.metrics import families


class EngineCollector(Collector):
    """What an engine or a pool counts, asked for at every scrape.

    ``prometheus_client.REGISTRY.register(EngineCollector(engine, "my-model"))`` adds the metrics
    of a service's ``/metrics`` to those of the program. A closed engine has none.

    Args:
        engine: an engine, or a `RayLLM`.
        model: the name that the metrics have for the model.
    """

    def __init__(self, engine: EngineApi | AsyncLLMEngine, model: str) -> None:
        self._engine = engine
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """Ask the engine; in any thread without an event loop."""
        engine = self._engine
        try:
            if isinstance(engine, AsyncLLMEngine):
                stats = asyncio.run(engine.stats())
            else:
                stats = engine.stats()
        except (EngineStoppedError, PoolError):
            return
        yield from families(stats, self._model)

    def describe(self) -> list[Metric]:
        """None in advance: a registry need not ask the engine when the collector is added."""
        return []
