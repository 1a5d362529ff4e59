"""One worker in this process."""

from __future__ import annotations

from paged_stream.config import EngineConfig
from paged_stream.executor.base import Executor
from paged_stream.models.config import ModelConfig
from paged_stream.models.files import ModelFiles
from paged_stream.scheduler.output import ModelOutput, SchedulerOutput
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.worker.worker import Worker


class LocalExecutor(Executor):
    def __init__(
        self,
        config: EngineConfig,
        files: ModelFiles,
        model_config: ModelConfig,
        sink_window: SinkWindow,
    ) -> None:
        self._worker = Worker(config, files, model_config, sink_window)
        self.cache_plan = self._worker.cache_plan

    def execute(self, output: SchedulerOutput) -> ModelOutput:
        return self._worker.execute(output)
