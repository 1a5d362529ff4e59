"""`BatchConfig`: what the user may set about a batch, and what follows from it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from paged_stream.batch.row_task import TASKS, RowTask, Task
from paged_stream.config import EngineConfig, offline_settings
from paged_stream.models.formats.resolve import EMBEDDED_MODEL
from paged_stream.scheduler.fields import Bytes, Integer, Kind, Switch, Words
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.settings import check_fields, setting, takes
from paged_stream.scheduler.word_fields import Choice, Text, Texts

OutputFormat = Literal["parquet", "jsonl"]
# A row's output must be the same bits in any company, so prompts are cut at fixed places, and
# nothing is taken from another row's cache.
EXACT = {"chunk_size": 256, "max_num_batched_tokens": 1024, "enable_prefix_caching": False}


@dataclass(frozen=True, slots=True)
class _Inputs(Texts):
    """Paths or URIs: one, or a list of them."""

    words: ClassVar[Words] = "several"
    metavar: ClassVar[str] = "PATH"

    @property
    def allowed(self) -> str:
        return "paths or URIs"

    def _check(self, name: str, value: Any) -> tuple[str, ...]:
        paths = [value] if isinstance(value, str | os.PathLike) else value
        if not isinstance(paths, Sequence) or not paths or not all(map(str, paths)):
            raise ValueError(f"{name} must be a path or URI or a list of them, got {value!r}")
        return tuple(_expanded(str(path)) for path in paths)


@dataclass(frozen=True, slots=True)
class _Output(Kind):
    """A folder, as path or URI, that means the same in every process."""

    metavar: ClassVar[str] = "FOLDER"

    @property
    def allowed(self) -> str:
        return "a folder or URI"

    def _check(self, name: str, value: Any) -> str:
        if not isinstance(value, str | os.PathLike) or not str(value):
            raise ValueError(f"{name} must be a folder or URI, got {value!r}")
        return _absolute(str(value))


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
    if Path(own := str(settings.get("tokenizer"))).expanduser().exists():
        settings["tokenizer"] = _absolute(own)
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
        input: files and folders to read, as paths or URIs such as ``s3://bucket/folder``: JSON
            lines, which may be compressed, Parquet or text.
        output: folder of the run, as path or URI, that all nodes share.
        model: as for `EngineConfig`.
        task: ``"generate"`` is the text that follows a prompt, ``"score"`` the log-likelihood of a
            text of any length, ``"chat"`` the answer to a conversation.
        prompt_column: the column with the prompt: text, token ids, or for a chat messages or one
            message of the user as text. ``None`` is ``prompt``, ``text`` or ``messages`` by task;
            for text files always ``text``.
        prompt_template: a Jinja template over the input's columns that writes the prompt instead,
            such as ``Summarise: {{ text }}``.
        sampling_params: how to generate. Its seed is the run's; with a row's place in the input it
            makes the row's own.
        engine: other fields of `EngineConfig`.
        format: of the output.
        num_replicas: engines. ``None`` is one per GPU, or one per node without GPUs.
        shard_bytes: input that is committed at a time. ``None`` makes about a thousand shards of
            64 KiB to 16 MiB.
        max_row_bytes: largest row. Larger ones are bad rows, which have no output but a reason.
        resume: go on with the run in ``output``, if there is one.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    input: str | Sequence[str] = field(metadata=takes(_Inputs()))
    output: str = field(metadata=takes(_Output()))
    model: str
    task: Task = setting("generate", Choice(TASKS))
    prompt_column: str | None = setting(None, Text(optional=True))
    prompt_template: str | None = setting(None, Text(optional=True))
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    engine: Mapping[str, Any] = field(default_factory=dict)
    format: OutputFormat = setting("parquet", Choice(get_args(OutputFormat)))
    num_replicas: int | None = setting(None, Integer(1, optional=True))
    shard_bytes: int | str | None = setting(None, Bytes(1, optional=True))
    max_row_bytes: int | str = setting(64 << 20, Bytes(1))
    resume: bool = setting(False, Switch())
    # What follows from these.
    engine_config: EngineConfig = field(init=False, repr=False, compare=False)
    row_task: RowTask = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        model = str(self.model)
        if model != EMBEDDED_MODEL and Path(model).expanduser().exists():
            object.__setattr__(self, "model", _absolute(model))
        object.__setattr__(self, "engine_config", engine_config(self.model, self.engine))
        task = RowTask(
            task=self.task,
            prompt_column=self.prompt_column,
            prompt_template=self.prompt_template,
            sampling_params=self.sampling_params,
            max_row_bytes=self.row_limit,
        )
        object.__setattr__(self, "row_task", task)

    @property
    def row_limit(self) -> int:
        """``max_row_bytes`` as a number."""
        assert isinstance(self.max_row_bytes, int)  # it was read
        return self.max_row_bytes
