"""Rows of any number of shards on one engine, as one continuous batch.

As many rows are with the engine at a time as its steps can take, and some more in its queue.
Whenever a row ends, the next one takes its place, of whatever shard: nobody waits for a shard's
slowest row but the shard itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from paged_stream.batch.answers import Answers
from paged_stream.batch.engine import BatchEngine
from paged_stream.batch.json_text import to_json
from paged_stream.batch.openai_rows import RequestRows, prompt_of, read_request
from paged_stream.batch.parts import RowFailure
from paged_stream.batch.progress import BatchProgress
from paged_stream.batch.prompts import Prompter, encode
from paged_stream.batch.row_params import row_params
from paged_stream.batch.row_task import RowTask
from paged_stream.scheduler.sampling_params import SamplingParams

_REPORT_SECONDS = 1.0
# Rows with the engine per sequence of a step, so that a step never waits for the next row.
_ROWS_PER_SEQUENCE = 2
_MOST_ANSWERS = 1 << 12  # that are remembered for equal rows
_COMPARED = 4096  # characters of a prompt

Result = dict[str, Any] | RowFailure  # a row's new columns, or why it has none

_NONE_YET = RowFailure("")


@dataclass(frozen=True, slots=True)
class KeyedRow:
    """A row and what names it for ever."""

    key: tuple[object, ...]
    values: Mapping[str, Any]


def row_seed(seed: int, *key: object) -> int:
    """The seed of one row's sampling: a function of the run's and the row's key."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class _Job:
    """Rows that are wanted together, in the order that they are run in."""

    def __init__(self, rows: Sequence[KeyedRow], order: Sequence[int], num_bytes: int) -> None:
        self.rows = rows
        self.order = order
        self.next = 0
        self.results: list[Result] = [_NONE_YET] * len(rows)
        self.num_left = len(rows)
        self.bytes_per_row = num_bytes / max(1, len(rows))
        self.future: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()


class RowRunner:
    """Runs rows on an engine, for the coroutines of one event loop.

    Args:
        report: called with what was done, about once a second and whenever a job has ended.
    """

    def __init__(
        self,
        engine: BatchEngine,
        task: RowTask,
        report: Callable[[BatchProgress], object] = lambda progress: None,
    ) -> None:
        self._engine = engine
        self._task = task
        self._prompter = Prompter(task)
        self._answers: Answers[dict[str, Any]] = Answers(_MOST_ANSWERS if task.dedup else 0)
        self._requests: RequestRows | None = None
        if task.task == "openai":
            params, limit = task.sampling_params, task.max_row_bytes
            self._requests = RequestRows(engine.engine, engine.model, params, limit)
        self._report = report
        self._progress = BatchProgress()
        self._num_computed = 0
        self._reported = time.monotonic()
        self._jobs: deque[_Job] = deque()
        self._slots: set[asyncio.Task[None]] = set()
        report(BatchProgress(num_engines=1))

    async def run(self, rows: Sequence[KeyedRow], *, num_bytes: int = 0) -> list[Result]:
        """A result for each row, in their order.

        Args:
            num_bytes: what they count for in reports.

        Raises:
            EngineStoppedError: the engine has failed.
        """
        if not rows:
            return []
        order: Sequence[int] = range(len(rows))
        if self._engine.shares_prefixes:
            order = await asyncio.to_thread(self._by_beginning, rows)
        job = _Job(rows, order, num_bytes)
        self._jobs.append(job)
        most = _ROWS_PER_SEQUENCE * self._engine.max_num_seqs
        for _ in range(min(len(rows), most - len(self._slots))):
            slot = asyncio.create_task(self._run_rows())
            self._slots.add(slot)
            slot.add_done_callback(self._slots.discard)
        return await job.future

    def _by_beginning(self, rows: Sequence[KeyedRow]) -> list[int]:
        """An order in which prompts that begin in the same way follow each other: the cache holds
        the beginnings of the last ones only."""

        def beginning(index: int) -> str:
            row = rows[index].values
            try:
                prompt = (
                    prompt_of(read_request(row)) if self._requests else self._prompter.prompt(row)
                )
            except ValueError:
                return ""  # a bad row, as it will turn out
            return (prompt if isinstance(prompt, str) else to_json(prompt))[:_COMPARED]

        return sorted(range(len(rows)), key=beginning)

    async def _run_rows(self) -> None:
        """Run one row after the other, the oldest job's first, until all are taken."""
        while self._jobs:
            job = self._jobs[0]
            index, job.next = job.order[job.next], job.next + 1
            if job.next == len(job.rows):
                self._jobs.popleft()
            try:
                await self._finish(job, index, await self._result(job.rows, index))
            except Exception as error:  # of the engine, not of the row
                self._fail(error, job)
                return

    async def _result(self, rows: Sequence[KeyedRow], index: int) -> Result:
        try:
            if self._requests is not None:
                return await self._answer(self._requests, rows, index)
            return await self._columns(rows, index)
        except ValueError as error:
            return RowFailure(str(error))

    async def _answer(self, requests: RequestRows, rows: Sequence[KeyedRow], index: int) -> Result:
        row = await asyncio.to_thread(rows.__getitem__, index)
        seed = self._seed(row.key or (to_json(row.values.get("body")),))
        return await requests.result(row.values, seed)

    def _seed(self, key: tuple[object, ...]) -> int:
        return row_seed(self._task.sampling_params.seed or 0, *key)

    def _encode(
        self, rows: Sequence[KeyedRow], index: int
    ) -> tuple[SamplingParams, Sequence[int], bytes]:
        """How a row is generated, its prompt's tokens, and, if equal rows share an answer, a digest
        of both but for a seed that the row does not have."""
        row = rows[index]
        prompt = self._prompter.prompt(row.values)
        params, has_seed = row_params(self._task, row.values)
        ids = encode(self._engine.tokenizer, prompt)
        digest = b""
        if self._task.dedup:
            digest = hashlib.blake2b(repr((list(ids), params)).encode(), digest_size=16).digest()
        if not has_seed:
            # Without a key, equal prompts get equal texts.
            key = (digest,) if self._task.dedup else row.key or (prompt,)
            params = replace(params, seed=self._seed(key))
        return params, ids, digest

    async def _columns(self, rows: Sequence[KeyedRow], index: int) -> dict[str, Any]:
        """What `RowTask.columns` names; raises ValueError if the row is a bad one."""
        params, ids, digest = await asyncio.to_thread(self._encode, rows, index)
        return await self._answers.get(digest, lambda: self._computed(params, ids))

    async def _computed(self, params: SamplingParams, ids: Sequence[int]) -> dict[str, Any]:
        if self._task.task == "score":
            return await self._score(ids)
        if self._task.task == "embed":
            return await self._embed(ids)
        ids = self._engine.engine.intake.prompts.truncate(list(ids), params)
        text, reason, count = [], None, 0
        async with aclosing(self._engine.engine.generate(ids, params)) as deltas:
            async for delta in deltas:
                text.append(delta.delta_text)
                reason = delta.finish_reason
                if reason == "error":
                    raise ValueError(delta.error)
                count += len(delta.delta_token_ids)
        columns = {"generated_text": "".join(text), "finish_reason": reason}
        return columns | {"prompt_tokens": len(ids), "output_tokens": count}

    async def _score(self, ids: Sequence[int]) -> dict[str, Any]:
        if len(ids) == 1:
            raise ValueError("the text must have at least 2 tokens to score, got 1")
        log_likelihood = sum(score or 0.0 for score in await self._engine.engine.score(ids))
        mean = -log_likelihood / (len(ids) - 1)
        perplexity = math.exp(mean) if mean < 700 else math.inf
        columns = {"log_likelihood": log_likelihood, "perplexity": perplexity}
        return columns | {"prompt_tokens": len(ids), "output_tokens": 0}

    async def _embed(self, ids: Sequence[int]) -> dict[str, Any]:
        [output] = await self._engine.engine.embed([ids])
        columns: dict[str, Any] = {"embedding": output.outputs.embedding}
        return columns | {"prompt_tokens": len(ids), "output_tokens": 0}

    async def _finish(self, job: _Job, index: int, result: Result) -> None:
        job.results[index] = result
        job.num_left -= 1
        is_done = not job.num_left
        self._progress.num_rows += 1
        self._progress.num_bad += isinstance(result, RowFailure)
        self._progress.num_bytes += job.bytes_per_row
        if is_done or time.monotonic() > self._reported + _REPORT_SECONDS:
            await self._tell()
        if is_done and not job.future.done():
            job.future.set_result(job.results)

    def _fail(self, error: Exception, job: _Job) -> None:
        """Whoever waits for rows hears why the engine has failed."""
        for each in (job, *self._jobs):
            if not each.future.done():
                each.future.set_exception(error)
        self._jobs.clear()

    async def _tell(self) -> None:
        self._reported = time.monotonic()
        progress, self._progress = self._progress, BatchProgress()
        computed = (await self._engine.engine.stats()).num_computed_tokens
        progress.num_tokens = max(0, computed - self._num_computed)
        self._num_computed += progress.num_tokens
        self._report(progress)
