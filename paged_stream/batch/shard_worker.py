"""An engine in an actor of Ray Data, which computes parts of shards and commits them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from paged_stream.batch.engine import start_engine
from paged_stream.batch.parts import BadRow, Part, RowFailure
from paged_stream.batch.row_runner import KeyedRow, Result, RowRunner
from paged_stream.batch.row_task import RowTask
from paged_stream.batch.run_folder import RunFolder
from paged_stream.batch.tables import TableWriter
from paged_stream.config import EngineConfig


class ShardWorker:
    """An engine that works on several parts at a time and commits each when its last row ends.

    Args:
        weights: the fingerprint of the weights that the run was begun with, if known.
        board: the Ray actor that hears of progress.

    Raises:
        ValueError: as `start_engine`, or other weights.
    """

    def __init__(
        self,
        *,
        engine: EngineConfig,
        task: RowTask,
        writer: TableWriter,
        output: str,
        weights: str | None,
        board: Any,
    ) -> None:
        import ray

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

        counts = [await self._run(data.as_buffer()) for data in batch["part"]]
        return pa.table({"rows": [rows for rows, _ in counts], "bad": [bad for _, bad in counts]})

    async def _run(self, data: Any) -> tuple[int, int]:
        """Compute a part; returns its rows with output, and those without."""
        part = await asyncio.to_thread(Part.from_bytes, data)
        results = await self._runner.run(PartRows(part), num_bytes=part.num_bytes)
        return await asyncio.to_thread(self._commit, part, results)

    def _commit(self, part: Part, results: Sequence[Result]) -> tuple[int, int]:
        good: dict[int, Mapping[str, Any]] = {}
        bad = list(part.bad)
        for index, result in enumerate(results):
            if isinstance(result, RowFailure):
                row = part.rows[index]
                location = part.locate(row, part.positions[index])
                bad.append(BadRow(row, location, result.reason, result.columns))
            else:
                good[index] = result
        bad.sort(key=lambda row: row.row)
        about = {
            "rows": len(good),
            "prompt_tokens": sum(columns["prompt_tokens"] for columns in good.values()),
            "output_tokens": sum(columns["output_tokens"] for columns in good.values()),
            "weights": self._weights,
        }
        self._folder.commit(part, self._writer.to_bytes(part, good), bad, about)
        return len(good), len(bad)


class PartRows(Sequence[KeyedRow]):
    """The good rows of a part, each read when it is its turn."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def __len__(self) -> int:
        return len(self._part.rows)

    def __getitem__(self, index: Any) -> Any:
        part = self._part
        return KeyedRow((part.shard, part.rows[index]), part.value(index))
