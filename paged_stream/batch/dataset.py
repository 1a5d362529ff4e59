"""A Ray dataset in, the same dataset with generated columns out, for pipelines of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paged_stream.batch.batch_config import engine_config
from paged_stream.batch.engine import start_engine
from paged_stream.batch.parts import RowFailure, TableRow
from paged_stream.batch.replicas import share_cluster
from paged_stream.batch.row_runner import KeyedRow, RowRunner
from paged_stream.batch.row_task import RowTask, Task
from paged_stream.batch.tables import added_array, free_names
from paged_stream.config import EngineConfig
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.system.ray_extra import connect, import_ray

ERROR = "error"
_BATCH_ROWS, _BATCHES_AHEAD = 32, 8


def generate_dataset(
    dataset: Any,
    model: str,
    *,
    task: Task = "generate",
    prompt_column: str | None = None,
    prompt_template: str | None = None,
    key_column: str | None = None,
    sampling_params: SamplingParams | None = None,
    engine: Mapping[str, Any] | None = None,
    num_replicas: int | None = None,
) -> Any:
    """Add what a model writes about each row of a ``ray.data.Dataset``. Lazy, and streaming.

    Args:
        dataset: the rows.
        model: as in `EngineConfig`.
        task: as in `BatchConfig`.
        prompt_column: as in `BatchConfig`.
        prompt_template: as in `BatchConfig`.
        key_column: a column that names each row. A row's random choices follow from the seed of
            ``sampling_params`` and this; without it, from its prompt, so that equal prompts get
            equal texts.
        sampling_params: how to generate; ``SamplingParams()`` if left out.
        engine: other fields of `EngineConfig`.
        num_replicas: as in `BatchConfig`.

    Returns:
        A dataset of the same rows, in no fixed order, with the task's columns and ``error``, which
        is null or says why a row has nothing in the others. An input column that has one of these
        names gets ``input_`` before its own.

    Raises:
        ValueError: a setting that is out of range.
        ImportError: Ray is not installed.
    """
    ray = import_ray("data")
    settings = engine_config(model, engine or {})
    row_task = RowTask(
        task=task,
        prompt_column=prompt_column,
        prompt_template=prompt_template,
        sampling_params=sampling_params or SamplingParams(),
    )
    connect(ray)
    replicas = share_cluster(ray, settings, num_replicas)
    worker = {
        "engine": replace(settings, num_threads=replicas.num_threads),
        "task": row_task,
        "key_column": key_column,
    }
    return replicas.map_batches(
        ray, dataset, RowsWorker, worker, batch_size=_BATCH_ROWS, batches_ahead=_BATCHES_AHEAD
    )


class RowsWorker:
    """An engine that works on several batches at a time and gives each back when it is done."""

    def __init__(self, *, engine: EngineConfig, task: RowTask, key_column: str | None) -> None:
        self._task = task
        self._key_column = key_column
        self._runner = RowRunner(start_engine(engine, task), task)

    async def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        table = batch.combine_chunks()
        rows = [TableRow(table, index) for index in range(table.num_rows)]
        results = await self._runner.run([KeyedRow(self._key(row), row) for row in rows])
        names = free_names(batch.column_names, [*self._task.columns, ERROR])
        batch = batch.rename_columns(list(names.values()))
        for name, kind in self._task.columns.items():
            column = [
                result.columns.get(name) if isinstance(result, RowFailure) else result[name]
                for result in results
            ]
            batch = batch.append_column(name, added_array(column, kind))
        errors = [r.reason if isinstance(r, RowFailure) else None for r in results]
        return batch.append_column(ERROR, pa.array(errors, "string"))

    def _key(self, row: Mapping[str, Any]) -> tuple[object, ...]:
        return () if self._key_column is None else (row[self._key_column],)
