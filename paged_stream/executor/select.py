"""Which executor an engine gets: one worker here, or several that share the model."""

from __future__ import annotations

from paged_stream.config import EngineConfig
from paged_stream.executor.base import Executor
from paged_stream.executor.local import LocalExecutor
from paged_stream.models.formats.files import ModelFiles
from paged_stream.models.model_config import ModelConfig
from paged_stream.scheduler.sink_window import SinkWindow


def make_executor(
    config: EngineConfig, files: ModelFiles, model_config: ModelConfig, sink_window: SinkWindow
) -> Executor:
    """Start the workers that ``config`` asks for.

    Raises:
        ValueError: as `Worker`; or ``tensor_parallel_size`` does not divide the model, or is more
            than the Ray cluster has room for.
        ImportError: several are asked for, and Ray is not installed.
    """
    if config.tensor_parallel_size == 1:
        return LocalExecutor(config, files, model_config, sink_window)
    from paged_stream.executor.ray import RayExecutor  # Ray is an extra

    return RayExecutor(config, files, model_config, sink_window)
