"""What the user may set about a batch; every field is checked where it enters."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paged_stream.batch.row_task import RowTask
from paged_stream.batch.tables import FORMATS
from paged_stream.config import EngineConfig, offline_settings
from paged_stream.models.formats.resolve import EMBEDDED_MODEL
from paged_stream.scheduler.fields import as_bytes, as_int, keep
from paged_stream.scheduler.sampling_params import SamplingParams

# A row's output must be the same bits in any company, so prompts are cut at fixed places, and
# nothing is taken from another row's cache.
EXACT = {"chunk_size": 256, "max_num_batched_tokens": 1024, "enable_prefix_caching": False}
# Engine settings that change how fast an output is there, not what it is.
_SPEED = (
    "cache_dir",
    "num_threads",
    "kv_cache_memory_bytes",
    "gpu_memory_utilization",
    "max_num_seqs",
    "max_num_batched_tokens",
    "num_decode_steps",
    "parking_memory_bytes",
    "parking_dir",
    "park_after_seconds",
    "seed",
)


def _expanded(path: str) -> str:
    """A path without ``~``; a URI as it is."""
    return path if "://" in path else os.path.expanduser(path)


def _absolute(path: str) -> str:
    """A path that means the same in every process; a URI as it is."""
    return path if "://" in path else os.path.abspath(_expanded(path))


def engine_config(model: str, engine: Mapping[str, Any]) -> EngineConfig:
    """An engine's settings with what makes its output the same in any company.

    Raises:
        ValueError: as `EngineConfig`, or an unknown field.
    """
    settings = offline_settings({**EXACT, **engine})
    config = EngineConfig.from_mapping({"model": model, **settings})
    if config.tensor_parallel_size > 1:
        raise ValueError(
            f"tensor_parallel_size must be 1 for a batch, got {config.tensor_parallel_size}: each "
            "engine has one GPU; a pool (RayLLM) takes more"
        )
    return config


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Settings of one batch.

    Args:
        inputs: files and folders, as paths or URIs: JSON lines, which may be compressed,
            Parquet or text.
        output: folder, as path or URI, that all nodes share.
        model: as for `EngineConfig`.
        task: ``"generate"``, ``"score"`` or ``"chat"``; see `RowTask`.
        prompt_column: the column with the prompt. ``None`` is ``prompt``, ``text`` or ``messages``
            by task; for text files always ``text``.
        prompt_template: Jinja over the input's columns, instead.
        sampling_params: how to generate; its seed is the run's.
        engine: other fields of `EngineConfig`.
        format: of the output, ``"parquet"`` or ``"jsonl"``.
        replicas: engines; ``None`` is one per GPU, or one per node without GPUs.
        shard_bytes: input that is committed at a time, in bytes or as text such as ``"1MiB"``;
            ``None`` makes about a thousand shards of 64 KiB to 16 MiB.
        max_row_bytes: larger rows are bad ones. In bytes or as text.
        resume: go on with the run in ``output``, if there is one.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    inputs: Sequence[str]
    output: str
    model: str
    task: str = "generate"
    prompt_column: str | None = None
    prompt_template: str | None = None
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    engine: Mapping[str, Any] = field(default_factory=dict)
    format: str = "parquet"
    replicas: int | None = None
    shard_bytes: int | str | None = None
    max_row_bytes: int | str = 64 << 20
    resume: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.inputs, str) or not self.inputs:
            raise ValueError(f"inputs must be a list of paths or URIs, got {self.inputs!r}")
        object.__setattr__(self, "inputs", tuple(_expanded(str(path)) for path in self.inputs))
        object.__setattr__(self, "output", _absolute(str(self.output)))
        model = str(self.model)
        if model != EMBEDDED_MODEL and Path(model).expanduser().exists():
            object.__setattr__(self, "model", _absolute(model))
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {self.format!r}")
        keep(self, "replicas", as_int, 1, optional=True)
        keep(self, "shard_bytes", as_bytes, 1, optional=True)
        keep(self, "max_row_bytes", as_bytes, 1)
        engine_config(self.model, self.engine)
        self.row_task()

    @property
    def row_limit(self) -> int:
        """``max_row_bytes`` as a number."""
        assert isinstance(self.max_row_bytes, int)  # it was read
        return self.max_row_bytes

    def row_task(self, input_format: str = "") -> RowTask:
        """The task of every row of inputs of a format."""
        column = self.prompt_column
        if input_format == "text" and column is None and self.prompt_template is None:
            column = "text"
        return RowTask(
            kind=self.task,
            column=column,
            template=self.prompt_template,
            params=self.sampling_params,
            max_row_bytes=self.row_limit,
        )

    def settings(self) -> dict[str, Any]:
        """All that output depends on, but for the files and the weights."""
        config = engine_config(self.model, self.engine)
        engine = asdict(config) | {"quantization": config.actual_quantization}
        sampling = asdict(self.sampling_params)
        return {
            "task": self.task,
            "prompt_column": self.prompt_column,
            "prompt_template": self.prompt_template,
            "format": self.format,
            "shard_bytes": self.shard_bytes,
            "max_row_bytes": self.max_row_bytes,
            **{name: value for name, value in engine.items() if name not in _SPEED},
            **sampling,
        }
