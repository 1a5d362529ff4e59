"""An engine in an actor of Ray Data, which computes shards and commits them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from paged_stream.batch.engine import start_engine
from paged_stream.batch.reading import BadRow, ShardRows
from paged_stream.batch.row_runner import KeyedRow, Result, RowRunner
from paged_stream.batch.row_task import RowTask
from paged_stream.batch.run_folder import RunFolder
from paged_stream.batch.shards import InputShard
from paged_stream.batch.tables import TableWriter
from paged_stream.config import EngineConfig


class ShardWorker:
    """An engine that works on several shards at a time and commits each when its last row ends.

    Args:
        shards: those to do; what comes in has indices into them.
        weights: the fingerprint of the weights that the run was begun with, if known.
        board: the Ray actor that hears of progress.

    Raises:
        ValueError: as `start_engine`, or other weights.
    """

    def __init__(
        self,
        *,
        shards: Sequence[InputShard],
        engine: EngineConfig,
        task: RowTask,
        writer: TableWriter,
        output: str,
        weights: str | None,
        board: Any,
    ) -> None:
        import ray

        self._shards = shards
        self._writer = writer
        self._folder = RunFolder(output, writer.suffix)
        try:
            started = start_engine(engine, task)
            self._weights = started.weights
            if weights is not None and weights != self._weights:
                raise ValueError(
                    f"resume: {engine.model} has other weights than {output} was begun with"
                )
            self._runner = RowRunner(started, task, board.add.remote)
        except ValueError as error:
            ray.get(board.fail.remote(str(error)))
            raise

    async def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        numbers = [
            await self._run(self._shards[index], data.as_buffer())
            for index, data in zip(batch["index"].to_pylist(), batch["rows"], strict=True)
        ]
        return pa.table({"shard": numbers})

    async def _run(self, shard: InputShard, data: Any) -> int:
        source = await asyncio.to_thread(ShardRows.from_bytes, data)
        values = await asyncio.to_thread(source.values, shard.format)
        rows = [
            KeyedRow((shard.number, row), v) for row, v in zip(source.rows, values, strict=True)
        ]
        results = await self._runner.run(rows, num_bytes=shard.num_bytes)
        await asyncio.to_thread(self._commit, shard, source, results)
        return shard.number

    def _commit(self, shard: InputShard, source: ShardRows, results: Sequence[Result]) -> None:
        good: dict[int, Mapping[str, Any]] = {}
        bad = list(source.bad)
        for index, result in enumerate(results):
            if isinstance(result, str):
                location = shard.locate(source.positions[index])
                bad.append(BadRow(source.rows[index], location, result))
            else:
                good[index] = result
        bad.sort(key=lambda row: row.row)
        about = {
            "rows": len(good),
            "prompt_tokens": sum(columns["prompt_tokens"] for columns in good.values()),
            "output_tokens": sum(columns["output_tokens"] for columns in good.values()),
            "weights": self._weights,
        }
        data = self._writer.to_bytes(shard, source, good)
        self._folder.commit(shard, data, bad, about)
