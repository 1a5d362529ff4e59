"""What a batch will do: files, shards, columns and the engines that share the work."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from paged_stream.batch.batch_config import BatchConfig
from paged_stream.batch.reading import ShardRows, parquet_schema, read_shard
from paged_stream.batch.row_task import RowTask
from paged_stream.batch.shards import JSONL, PARQUET, TEXT, InputFile, InputShard, cut, find_files
from paged_stream.batch.tables import KEY, TableWriter, check_columns, column_types
from paged_stream.config import EngineConfig
from paged_stream.models.formats.resolve import resolve_model, resolve_tokenizer
from paged_stream.text.tokenizer import has_tokenizer, load_tokenizer

_SAMPLE_FILES, _SAMPLE_ROWS = 8, 1000
_COMPRESSION = 4  # of compressed lines, about
# Rows that wait in a replica per row that runs, so that there is always a next one.
_ROWS_AHEAD = 2
# Fields of `BatchConfig` that its output depends on.
_OF_OUTPUT = (
    "task",
    "prompt_column",
    "prompt_template",
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
    "parking_memory_bytes",
    "parking_dir",
    "park_after_seconds",
    "seed",
)
_MIN_SHARDS_AHEAD, _MAX_SHARDS_AHEAD = 4, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """A batch, ready to run."""

    config: BatchConfig
    task: RowTask
    input_format: str
    files: Sequence[InputFile]
    shards: Sequence[InputShard]
    types: Mapping[str, str]
    sample: Sequence[tuple[InputShard, ShardRows]]

    @property
    def engine(self) -> EngineConfig:
        return self.config.engine_config

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def shards_ahead(self) -> int:
        """Shards that a replica works on at a time."""
        rows = sum(len(source.rows) for _, source in self.sample)
        size = sum(shard.num_bytes for shard, _ in self.sample)
        rows_per_shard = max(1.0, rows * self.num_bytes / max(1, size * len(self.shards)))
        wanted = int((1 + _ROWS_AHEAD) * self.engine.actual_max_num_seqs / rows_per_shard) + 1
        return max(_MIN_SHARDS_AHEAD, min(_MAX_SHARDS_AHEAD, wanted))

    def writer(self) -> TableWriter:
        return TableWriter(self.config.format, self.types, self.task.columns)

    def settings(self) -> dict[str, Any]:
        """All that the output depends on, but for the weights."""
        files = [[file.path, file.size] for file in self.files]
        engine = asdict(self.engine) | {"quantization": self.engine.actual_quantization}
        batch = {name: getattr(self.config, name) for name in _OF_OUTPUT}
        output = {name: value for name, value in engine.items() if name not in _OF_SPEED}
        sampling = asdict(self.config.sampling_params)
        return {**batch, **output, **sampling, "columns": dict(self.types), "input": files}


def make_plan(config: BatchConfig) -> BatchPlan:
    """Look at the inputs and the model's files.

    Raises:
        ValueError: what the user must change.
    """
    _check_tokenizer(config)
    input_format, files = find_files(config.input)
    assert not isinstance(config.shard_bytes, str)  # it was read
    shards = cut(input_format, files, config.shard_bytes)
    if not shards:
        raise ValueError(f"input must have rows, {', '.join(config.input)} has none")
    task = config.row_task
    if input_format == TEXT and task.prompt_column is None and task.prompt_template is None:
        task = replace(task, prompt_column="text")
    sample = read_sample(shards, config.row_limit)
    added = [*task.columns, *KEY]
    types: dict[str, str] = {}
    if input_format == JSONL:
        rows = itertools.chain.from_iterable(source.values(JSONL) for _, source in sample)
        first = list(itertools.islice(rows, _SAMPLE_ROWS))
        check_columns([name for row in first for name in row], added)
        types = column_types(first, added)
    elif input_format == PARQUET:
        check_columns(_common_schema(files).names, added)
    return BatchPlan(
        config=config,
        task=task,
        input_format=input_format,
        files=files,
        shards=shards,
        types=types,
        sample=sample,
    )


def _check_tokenizer(config: BatchConfig) -> None:
    """Raises ValueError if the task needs a tokenizer, or a chat template, and there is none."""
    engine = config.engine_config
    model = resolve_model(
        engine.model, cache_dir=engine.cache_dir, with_tokenizer=engine.tokenizer is None
    )
    source = resolve_tokenizer(model, engine.tokenizer, cache_dir=engine.cache_dir)
    if not has_tokenizer(source.folder) and config.task != "score":
        raise ValueError(f"task={config.task!r} needs a tokenizer, {config.model} has none")
    if config.task == "chat":
        load_tokenizer(*source, engine.chat_template).chat_template()


def read_sample(
    shards: Sequence[InputShard], max_row_bytes: int
) -> list[tuple[InputShard, ShardRows]]:
    """The beginnings of some shards, spread over the input."""
    step, most = -(-len(shards) // _SAMPLE_FILES), _SAMPLE_ROWS // _SAMPLE_FILES
    parts = []
    for shard in shards[::step]:
        stop = shard.stop
        if shard.format != JSONL:
            stop = min(stop, shard.start + most)
        part = replace(
            shard,
            stop=stop,
            paths=shard.paths[shard.start : stop] if shard.format == TEXT else shard.paths,
        )
        rows = read_shard(part, max_row_bytes, most=most)
        num_bytes = int(shard.num_bytes * _share(shard, part, rows, most))
        part = replace(part, num_bytes=max(1, num_bytes))
        parts.append((part, rows))
    return parts


def _share(shard: InputShard, part: InputShard, rows: ShardRows, most: int) -> float:
    """How much of a shard was read, about."""
    if shard.format != JSONL:
        return (part.stop - shard.start) / (shard.stop - shard.start)
    if len(rows.rows) + len(rows.bad) < most or not rows.positions:
        return 1.0
    size = shard.num_bytes * (_COMPRESSION if shard.stop < 0 else 1)
    return min(1.0, (rows.positions[-1] - shard.start) / size)


def _common_schema(files: Sequence[InputFile]) -> Any:
    """Columns of all Parquet files.

    Raises:
        ValueError: they differ.
    """
    first = parquet_schema(files[0].path)
    for file in files[1:]:
        schema = parquet_schema(file.path)
        if schema != first:
            raise ValueError(
                f"input files must have the same columns: {files[0].path} has "
                f"{_names(first)}, {file.path} has {_names(schema)}"
            )
    return first


def _names(schema: Any) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)
