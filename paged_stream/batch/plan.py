"""What a batch will do: files, shards, columns and the engines that share the work."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from paged_stream.batch.batch_config import BatchConfig
from paged_stream.batch.columns import ColumnView
from paged_stream.batch.finding import find_files
from paged_stream.batch.input_plan import InputPlan, plan_input
from paged_stream.batch.inputs import InputFiles
from paged_stream.batch.listing import in_recorded_order
from paged_stream.batch.parts import MAX_ROWS, Part
from paged_stream.batch.reading import Reader
from paged_stream.batch.row_task import WRITING_TASKS, RowTask
from paged_stream.batch.run_folder import RunRecord
from paged_stream.batch.shards import Shards
from paged_stream.batch.tables import TableWriter, column_types
from paged_stream.config import EngineConfig
from paged_stream.models.formats.resolve import resolve_model, resolve_tokenizer
from paged_stream.text.tokenizer import has_tokenizer, load_tokenizer

_SAMPLE_SHARDS, _SAMPLE_ROWS = 8, 1000
# Rows that wait in a replica per row that runs, so that there is always a next one.
_ROWS_AHEAD = 2
# Fields of `BatchConfig` that its output depends on.
_OF_OUTPUT = (
    "task",
    "input_format",
    "columns",
    "rename",
    "keep",
    "prompt_column",
    "prompt_template",
    "sampling_columns",
    "dedup",
    "format",
    "shard_bytes",
    "max_row_bytes",
)
# Fields of `EngineConfig` that change how fast an output is there, not what it is.
_OF_SPEED = (
    "cache_dir",
    "num_threads",
    "kv_cache_memory_bytes",
    "gpu_memory_utilization",
    "max_num_seqs",
    "max_num_batched_tokens",
    "num_decode_steps",
    "speculative_config",
    "parking_memory_bytes",
    "parking_dir",
    "park_after_seconds",
    "seed",
)
_MIN_PARTS_AHEAD, _MAX_PARTS_AHEAD = 4, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """A batch, ready to run.

    Args:
        types: of JSON columns.
        sample: the first rows of some shards.
    """

    config: BatchConfig
    task: RowTask
    input: InputPlan
    types: Mapping[str, str]
    sample: Sequence[Part]

    @property
    def engine(self) -> EngineConfig:
        return self.config.engine_config

    @property
    def parts_ahead(self) -> int:
        """Parts of shards that a replica works on at a time."""
        rows = sum(len(part.rows) + len(part.bad) for part in self.sample)
        size = sum(part.num_bytes for part in self.sample)
        # Unpacked, without the 8 bytes that Arrow has for each text.
        weight = sum(part.table.nbytes - 8 * len(part.rows) for part in self.sample)
        shards = self.input.shards
        in_shard = shards.num_bytes / len(shards) * rows / max(1, size)
        in_part = self.input.reader.size.num_bytes * rows / max(1, weight)
        rows_per_part = max(1.0, min(MAX_ROWS, in_shard, in_part))
        wanted = int((1 + _ROWS_AHEAD) * self.engine.actual_max_num_seqs / rows_per_part) + 1
        return max(_MIN_PARTS_AHEAD, min(_MAX_PARTS_AHEAD, wanted))

    def writer(self) -> TableWriter:
        schema = self.input.reader.view.schema
        names = dict.fromkeys(schema.names) if schema is not None else self.types
        keep = self.config.keep
        return TableWriter(
            str(self.config.format),
            {name: kind for name, kind in names.items() if keep is None or name in keep},
            self.task.columns,
            has_extra=schema is None and self.input.files.kinds[0].format != "text",
            keep=keep,
        )

    def settings(self) -> dict[str, Any]:
        """All that the output depends on, but for the weights."""
        engine = asdict(self.engine) | {"quantization": self.engine.actual_quantization}
        batch = {name: getattr(self.config, name) for name in _OF_OUTPUT}
        output = {name: value for name, value in engine.items() if name not in _OF_SPEED}
        sampling = asdict(self.config.sampling_params)
        view = self.input.reader.view
        types = dict(self.types)
        if view.schema is not None:
            types = {each.name: str(each.type) for each in view.schema}
        folders = dict(view.partitions)
        return {**batch, **output, **sampling, "types": types, "folder_columns": folders}


def make_plan(config: BatchConfig, begun: RunRecord | None = None) -> BatchPlan:
    """Look at the inputs and the model's files.

    Args:
        begun: the run that is to go on. Input files that it does not know are added to it.

    Raises:
        ValueError: what the user must change.
    """
    _check_tokenizer(config)
    files = find_files(config.input, config.input_format)
    if begun is not None and begun.listing is not None:
        files = in_recorded_order(files, begun.listing)
    task = _with_column(config.row_task, files)
    view = ColumnView(
        columns=config.columns, rename=config.rename or {}, wanted=_wanted(config, task)
    )
    assert not isinstance(config.shard_bytes, str)  # it was read
    source = plan_input(files, view, config.row_limit, config.shard_bytes)
    sample = read_sample(source.shards, source.reader)
    types = _types(sample)
    if begun is not None and source.reader.view.schema is None:
        types = begun.settings["types"]
    schema = source.reader.view.schema
    if schema is not None or any(part.rows for part in sample):
        _check_columns(config, task, list(types) if schema is None else schema.names)
    return BatchPlan(config=config, task=task, input=source, types=types, sample=sample)


def _with_column(task: RowTask, files: InputFiles) -> RowTask:
    """The task with the column that text files have, unless the user has said where prompts are."""
    is_text = files.kinds[0].format == "text"
    if (
        is_text
        and task.task != "openai"
        and task.prompt_column is None
        and task.prompt_template is None
    ):
        return replace(task, prompt_column="text")
    return task


def _wanted(config: BatchConfig, task: RowTask) -> Collection[str] | None:
    """Columns that somebody needs; ``None`` is all."""
    if config.keep is None:
        return None
    return (*config.keep, *task.prompt_columns, *task.sampling_columns) or None


def _types(sample: Sequence[Part]) -> dict[str, str]:
    """Types of the columns of JSON rows; empty for tables."""
    rows = (part.value(index) for part in sample if part.is_json for index in range(len(part.rows)))
    return column_types(list(itertools.islice(rows, _SAMPLE_ROWS)))


def _check_columns(config: BatchConfig, task: RowTask, names: Sequence[str]) -> None:
    """Raises ValueError if a setting names a column that the input has not."""
    renamed = config.rename or {}
    asked = {
        "columns": [renamed.get(name, name) for name in config.columns or ()],
        "rename": list(renamed.values()),
        "sampling_columns": list(task.sampling_columns),
        "keep": [name for name in config.keep or () if name not in task.prompt_columns],
    }
    has = f"; it has {', '.join(names)}" if names else ""
    for setting, wanted in asked.items():
        if setting == "rename" and config.keep is not None:
            continue  # a column that nobody needs is not read
        if missing := [name for name in wanted if name not in names]:
            raise ValueError(f"{setting} must name columns of the input, got {missing[0]!r}{has}")
    for name in () if task.prompt_template is not None else task.prompt_columns:
        if name not in names:
            raise ValueError(f"the input must have the column {name!r} for {task.task!r}{has}")


def _check_tokenizer(config: BatchConfig) -> None:
    """Raises ValueError if the task needs a tokenizer, or a chat template, and there is none."""
    engine = config.engine_config
    model = resolve_model(
        engine.model, cache_dir=engine.cache_dir, with_tokenizer=engine.tokenizer is None
    )
    source = resolve_tokenizer(model, engine.tokenizer, cache_dir=engine.cache_dir)
    if not has_tokenizer(source.folder) and config.task in WRITING_TASKS:
        raise ValueError(f"task={config.task!r} needs a tokenizer, {config.model} has none")
    if config.task == "chat":
        load_tokenizer(*source, engine.chat_template).chat_template()


def read_sample(shards: Shards, reader: Reader) -> list[Part]:
    """The beginnings of some shards, spread over the input."""
    step, most = -(-len(shards) // _SAMPLE_SHARDS), _SAMPLE_ROWS // _SAMPLE_SHARDS
    short = replace(reader, size=replace(reader.size, max_rows=most))
    return [next(short.parts(shard)) for shard in shards[::step]]
