"""`BatchConfig`: what the user may set about a batch, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from paged_stream.batch.formats import FORMATS, Format
from paged_stream.batch.row_task import REQUEST, TASKS, RowTask, Task
from paged_stream.batch.setting_kinds import (
    Columns,
    ErrorLimit,
    Inputs,
    Output,
    Renames,
    absolute,
)
from paged_stream.config import EngineConfig, offline_settings
from paged_stream.models.formats.resolve import EMBEDDED_MODEL
from paged_stream.scheduler.fields import Bytes, Integer, Switch
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.settings import check_fields, setting, takes
from paged_stream.scheduler.word_fields import Choice, Text

OutputFormat = Literal["parquet", "jsonl"]
# A row's output must be the same bits in any company. On a GPU they depend on where prompts are
# cut: so that is at fixed places, and nothing is taken from another row's cache. On a CPU they do
# not, but a cache that nobody profits from would fill the memory.
EXACT = {"chunk_size": 256, "max_num_batched_tokens": 1024, "enable_prefix_caching": False}


def engine_config(model: str, engine: Mapping[str, Any]) -> EngineConfig:
    """An engine's settings with what makes its output the same in any company.

    Raises:
        ValueError: as `EngineConfig`, or an unknown field.
    """
    settings = offline_settings({**EXACT, **engine})
    if Path(own := str(settings.get("tokenizer"))).expanduser().exists():
        settings["tokenizer"] = absolute(own)
    if given := settings.get("lora_modules"):
        modules = [given] if isinstance(given, str) else given
        settings["lora_modules"] = tuple(map(_with_absolute_path, modules))
    config = EngineConfig.from_mapping({"model": model, **settings})
    if config.tensor_parallel_size > 1:
        raise ValueError(
            f"tensor_parallel_size must be 1 for a batch, got {config.tensor_parallel_size}: each "
            "engine has one GPU; a pool (RayLLM) takes more"
        )
    return config


def _with_absolute_path(module: str) -> str:
    name, mark, path = module.partition("=")
    return f"{name}={absolute(path)}" if mark and Path(path).expanduser().exists() else module


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Settings of one batch.

    Args:
        input: files, folders and patterns such as ``data/**/*.parquet``, as paths or URIs such as
            ``s3://bucket/folder``: JSON lines, JSON arrays, CSV, TSV, text, Parquet or Arrow, which
            may be compressed.
        output: folder of the run, as path or URI, that all nodes share.
        model: as for `EngineConfig`.
        task: ``"generate"`` is the text that follows a prompt, ``"score"`` the log-likelihood of a
            text of any length, ``"embed"`` its embedding, ``"chat"`` the answer to a conversation,
            ``"openai"`` the answer to a request: rows and answers are those of OpenAI's batch
            files.
        input_format: of all input files. ``None`` is what their names say or, where these say
            nothing, their first bytes.
        columns: input columns to read, by the input's names. ``None`` is all.
        rename: new names of input columns. All other settings know the new ones.
        keep: input columns that the output has too. ``None`` is all; of requests,
            ``custom_id``, which is always kept.
        prompt_column: the column with the prompt: text, token ids, or for a chat messages or one
            message of the user as text. ``None`` is ``prompt``, ``text`` or ``messages`` by task;
            for text files always ``text``.
        prompt_template: a Jinja template over the input's columns that writes the prompt instead,
            such as ``Summarise: {{ text }}``.
        sampling_params: how to generate, unless a row says so itself. Its seed is the run's; with a
            row's place in the input it makes the row's own.
        sampling_columns: columns that say how their row is generated: named as a field of
            `SamplingParams`, such as ``temperature``, or with an object of such fields. What is
            null is as in ``sampling_params``.
        dedup: let equal rows share one answer. An engine computes it once among some thousand
            different rows. A row's seed is made from what it asks for instead of its place, so its
            answer is the same wherever it is computed.
        engine: other fields of `EngineConfig`.
        format: of the output. ``None`` is Parquet, and JSON lines for answers to requests.
        num_replicas: engines. ``None`` is one per GPU, or one per node without GPUs.
        shard_bytes: input that is committed at a time. ``None`` makes about a thousand shards of
            64 KiB to 16 MiB.
        max_errors: bad rows, as a count or a share of all rows, that end a run if there are more.
            ``None`` is no limit.
        max_row_bytes: largest row. Larger ones are bad rows, which have no output but a reason.
        resume: go on with the run in ``output``, if there is one. Input files that it does not know
            are added to it.
        retry_errors: when resuming, compute the rows again that have no output.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    input: str | Sequence[str] = field(metadata=takes(Inputs()))
    output: str = field(metadata=takes(Output()))
    model: str
    task: Task = setting("generate", Choice(TASKS))
    input_format: Format | None = setting(None, Choice(FORMATS, optional=True))
    columns: Sequence[str] | None = setting(None, Columns(optional=True))
    rename: Mapping[str, str] | None = setting(None, Renames(optional=True))
    keep: Sequence[str] | None = setting(None, Columns(optional=True))
    prompt_column: str | None = setting(None, Text(optional=True))
    prompt_template: str | None = setting(None, Text(optional=True))
    sampling_params: SamplingParams = field(default_factory=SamplingParams)
    sampling_columns: Sequence[str] | None = setting(None, Columns(optional=True))
    dedup: bool = setting(False, Switch())
    engine: Mapping[str, Any] = field(default_factory=dict)
    format: OutputFormat | None = setting(None, Choice(get_args(OutputFormat), optional=True))
    num_replicas: int | None = setting(None, Integer(1, optional=True))
    shard_bytes: int | str | None = setting(None, Bytes(1, optional=True))
    max_errors: int | float | str | None = setting(None, ErrorLimit(optional=True))
    max_row_bytes: int | str = setting(64 << 20, Bytes(1))
    resume: bool = setting(False, Switch())
    retry_errors: bool = setting(False, Switch())
    # What follows from these.
    engine_config: EngineConfig = field(init=False, repr=False, compare=False)
    row_task: RowTask = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.retry_errors and not self.resume:
            raise ValueError("retry_errors must go with resume: it is about a run that has ended")
        model = str(self.model)
        if model != EMBEDDED_MODEL and Path(model).expanduser().exists():
            object.__setattr__(self, "model", absolute(model))
        object.__setattr__(self, "engine_config", engine_config(self.model, self.engine))
        is_openai = self.task == "openai"
        if self.format is None:
            object.__setattr__(self, "format", "jsonl" if is_openai else "parquet")
        if is_openai:
            object.__setattr__(self, "keep", tuple(dict.fromkeys((REQUEST[0], *(self.keep or ())))))
        task = RowTask(
            task=self.task,
            prompt_column=self.prompt_column,
            prompt_template=self.prompt_template,
            sampling_params=self.sampling_params,
            sampling_columns=tuple(self.sampling_columns or ()),
            max_row_bytes=self.row_limit,
            dedup=self.dedup,
        )
        object.__setattr__(self, "row_task", task)

    @property
    def row_limit(self) -> int:
        """``max_row_bytes`` as a number."""
        assert isinstance(self.max_row_bytes, int)  # it was read
        return self.max_row_bytes
