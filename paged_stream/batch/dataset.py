"""A Ray dataset in, the same dataset with generated columns out, for pipelines of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paged_stream.batch.batch_config import engine_config
from paged_stream.batch.plan import Pool
from paged_stream.batch.row_runner import KeyedRow, RowRunner
from paged_stream.batch.row_task import RowTask
from paged_stream.batch.run import connect
from paged_stream.batch.tables import check_columns
from paged_stream.config import EngineConfig
from paged_stream.engine.llm_engine import LLMEngine
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.system.ray_extra import import_ray

ERROR = "error"
_BATCH_ROWS, _BATCHES_AHEAD = 32, 8


def generate_dataset(
    dataset: Any,
    model: str,
    *,
    task: str = "generate",
    prompt_column: str | None = None,
    prompt_template: str | None = None,
    key_column: str | None = None,
    sampling_params: SamplingParams | None = None,
    engine: Mapping[str, Any] | None = None,
    replicas: int | None = None,
) -> Any:
    """Add what a model writes about each row of a ``ray.data.Dataset``. Lazy, and streaming.

    Args:
        task: as for `BatchConfig`, like all that is not told here.
        key_column: a column that names each row. A row's random choices follow from the seed of
            ``sampling_params`` and this; without it, from its prompt, so that equal prompts get
            equal texts.

    Returns:
        A dataset of the same rows, in no fixed order, with the task's columns and ``error``, which
        is null or says why a row has nothing in the others.

    Raises:
        ValueError: a setting that is out of range.
        ImportError: Ray is not installed.
    """
    ray = import_ray("data")
    settings = engine_config(model, engine or {})
    row_task = RowTask(
        kind=task,
        column=prompt_column,
        template=prompt_template,
        params=sampling_params or SamplingParams(),
    )
    connect(ray)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    pool = Pool.fit(replicas, nodes, str(settings.device))
    return dataset.map_batches(
        RowsWorker,
        fn_constructor_args=(
            replace(settings, num_threads=settings.num_threads or pool.num_threads),
            row_task,
            key_column,
        ),
        batch_size=_BATCH_ROWS,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=pool.num_replicas,
            max_tasks_in_flight_per_actor=_BATCHES_AHEAD,
            max_concurrent_calls_per_actor=_BATCHES_AHEAD,
        ),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
    )


class RowsWorker:
    """An engine that works on several batches at a time and gives each back when it is done."""

    def __init__(self, engine: EngineConfig, task: RowTask, key_column: str | None) -> None:
        self._task = task
        self._key_column = key_column
        self._runner = RowRunner(LLMEngine(engine), task)

    async def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        check_columns(batch.column_names, [*self._task.columns, ERROR])
        values = batch.to_pylist()
        rows = [KeyedRow(self._key(row), row) for row in values]
        results = await asyncio.wrap_future(self._runner.submit(rows))
        for name, kind in self._task.columns.items():
            column = [None if isinstance(result, str) else result[name] for result in results]
            batch = batch.append_column(name, pa.array(column, kind))
        errors = [result if isinstance(result, str) else None for result in results]
        return batch.append_column(ERROR, pa.array(errors, "string"))

    def _key(self, row: Mapping[str, Any]) -> tuple[object, ...]:
        return () if self._key_column is None else (row[self._key_column],)
