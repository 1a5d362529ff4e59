"""How an engine reaches its workers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from paged_stream.scheduler.output import ModelOutput, SchedulerOutput
from paged_stream.worker.kv_cache import CachePlan


class Executor(ABC):
    """Runs scheduled steps somewhere. ``cache_plan`` is what its workers have room for."""

    cache_plan: CachePlan

    @abstractmethod
    def execute(self, output: SchedulerOutput) -> ModelOutput:
        """Compute one step, on every worker that has a part in it."""
