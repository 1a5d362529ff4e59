"""One worker in this process."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from paged_stream.config import EngineConfig
from paged_stream.executor.base import Executor
from paged_stream.layers.rank_group import RankGroup
from paged_stream.models.fingerprint import fingerprint
from paged_stream.models.formats.files import ModelFiles
from paged_stream.models.kv_tokens import KVTokens
from paged_stream.models.model_config import ModelConfig
from paged_stream.scheduler.output import KVOperation, ModelOutput, SchedulerOutput
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.worker.worker import Worker


class LocalExecutor(Executor):
    """Also what each rank of a model that is shared does on its part, with ``group`` the others."""

    def __init__(
        self,
        config: EngineConfig,
        files: ModelFiles,
        model_config: ModelConfig,
        sink_window: SinkWindow,
        group: RankGroup | None = None,
    ) -> None:
        self._worker = Worker(config, files, model_config, sink_window, group)
        self.cache_plan = self._worker.cache_plan
        self.weight_samples = self._worker.weight_samples
        self.fingerprint = fingerprint([self.weight_samples])
        self.default_decode_steps = self._worker.default_decode_steps
        self.runs_ahead = self._worker.device.type != "cpu"

    def execute(self, output: SchedulerOutput) -> ModelOutput:
        return self._worker.execute(output)

    def submit(self, output: SchedulerOutput) -> Callable[[], ModelOutput]:
        return self._worker.submit(output) if self.runs_ahead else super().submit(output)

    def apply(self, operations: Sequence[KVOperation]) -> None:
        self._worker.apply(operations)

    def read(self, slots: array[int]) -> KVTokens:
        return self._worker.read(slots)

    def put_parked(self, key: int, tokens: KVTokens) -> None:
        self._worker.parked.put(key, tokens)

    def read_parked(self, key: int) -> KVTokens:
        return self._worker.parked.read(key)

    def parked_location(self, key: int) -> Literal["host", "disk"]:
        return self._worker.parked.location(key)

    def parked_bytes(self) -> tuple[int, int]:
        return self._worker.parked.host_bytes, self._worker.parked.disk_bytes

    def cache_bytes(self) -> tuple[int, int]:
        return self._worker.cache_bytes()

    def load_adapter(self, folder: Path) -> str:
        return self._worker.load_adapter(folder)

    def drop_adapter(self, key: str) -> None:
        self._worker.drop_adapter(key)

    def close(self) -> None:
        self._worker.close()
