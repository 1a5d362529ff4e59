"""An engine in an actor of Ray Data, which computes parts of shards and commits them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from paged_stream.batch.engine import start_engine
from paged_stream.batch.lifeline import Address, end_with
from paged_stream.batch.parts import BadRow, Part, RowFailure
from paged_stream.batch.progress import BatchProgress
from paged_stream.batch.row_runner import KeyedRow, Result, RowRunner
from paged_stream.batch.row_task import RowTask
from paged_stream.batch.run_folder import RunFolder
from paged_stream.batch.tables import TableWriter
from paged_stream.config import EngineConfig

_TOKENS = ("prompt_tokens", "output_tokens")


class ShardWorker:
    """An engine that works on several parts at a time and commits each when its last row ends.

    Args:
        weights: the fingerprint of the weights that the run was begun with, if known.
        is_resumed: whether there may be output of parts that are not committed.
        board: the Ray actor that hears of progress.
        lifeline: address of the driver's; ``None`` if that is this process.

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
        is_resumed: bool,
        board: Any,
        lifeline: Address | None = None,
    ) -> None:
        import ray

        if lifeline is not None:
            end_with(lifeline)
        self._writer = writer
        self._is_resumed = is_resumed
        self._board = board
        self._folder = RunFolder(output, writer.suffix)
        board.add.remote(BatchProgress(num_placed=1))
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
        import ray

        try:
            counts = [await self._run(data.as_buffer()) for data in batch["part"]]
        except (OSError, RuntimeError, ValueError) as error:
            with suppress(ray.exceptions.RayError):  # the board may be gone with its node
                await self._board.fail.remote(f"{type(error).__name__}: {error}")
            raise
        return pa.Table.from_pylist(counts)

    async def _run(self, data: Any) -> dict[str, int]:
        """Compute a part; returns how many of its rows have output, how many have none, and what
        had to be computed."""
        part = await asyncio.to_thread(Part.from_bytes, data)
        known = await asyncio.to_thread(self._known, part)
        wanted = [index for index in range(len(part.rows)) if index not in (known or ())]
        results = await self._runner.run(PartRows(part, wanted), num_bytes=part.num_bytes)
        found = (known or {}) | dict(zip(wanted, results, strict=True))
        counts = await asyncio.to_thread(self._commit, part, found, is_again=known is not None)
        new = [result for result in results if not isinstance(result, RowFailure)]
        tokens = {f"new_{name}": sum(each[name] for each in new) for name in _TOKENS}
        return {**counts, "new_rows": len(results), **tokens}

    def _known(self, part: Part) -> dict[int, Result] | None:
        """Results that have been written before, by index among the part's good rows: because bad
        rows are to be tried again, or because somebody died before the part was committed."""
        content = self._folder.output_of(part) if self._is_resumed else None
        return None if content is None else dict(self._writer.read(part, content))

    def _commit(
        self, part: Part, results: Mapping[int, Result], *, is_again: bool
    ) -> dict[str, int]:
        good: dict[int, Mapping[str, Any]] = {}
        bad = list(part.bad)
        for index, result in results.items():
            if isinstance(result, RowFailure):
                row = part.rows[index]
                location = part.locate(row, part.positions[index])
                bad.append(BadRow(row, location, result.reason, result.columns))
            else:
                good[index] = result
        bad.sort(key=lambda row: row.row)
        about = {
            "rows": len(good),
            **{name: sum(columns[name] for columns in good.values()) for name in _TOKENS},
            "weights": self._weights,
        }
        data = self._writer.to_bytes(part, good)
        self._folder.commit(part, data, bad, about, is_again=is_again)
        return {"rows": len(good), "bad": len(bad)}


class PartRows(Sequence[KeyedRow]):
    """Some of the good rows of a part, each read when it is its turn."""

    def __init__(self, part: Part, indices: Sequence[int]) -> None:
        self._part = part
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        part, index = self._part, self._indices[index]
        return KeyedRow((part.shard, part.rows[index]), part.value(index))
