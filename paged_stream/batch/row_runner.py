"""Rows of any number of shards on one engine, as one continuous batch.

A thread of its own steps the engine. Whenever a row ends, the next one takes its place, of whatever
shard: nobody waits for a shard's slowest row but the shard itself.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from paged_stream.batch.row_task import Prompter, RowRequest, RowTask
from paged_stream.engine.llm_engine import LLMEngine

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class KeyedRow:
    """A row and what names it for ever."""

    key: tuple[object, ...]
    values: Mapping[str, Any]


@dataclass(slots=True)
class BatchProgress:
    """Work done since the last report. ``num_tokens`` went through the model, in and out;
    ``num_engines`` are new ones."""

    num_engines: int = 0
    num_rows: int = 0
    num_bad: int = 0
    num_tokens: int = 0
    num_bytes: float = 0.0


Result = dict[str, Any] | str  # a row's new columns, or why it has none


class _Job:
    """Rows that were submitted together."""

    def __init__(self, rows: Sequence[KeyedRow], num_bytes: int) -> None:
        self.rows = deque(enumerate(rows))
        self.results: list[Result] = [""] * len(rows)
        self.num_left = len(rows)
        self.bytes_per_row = num_bytes / max(1, len(rows))
        self.future: Future[list[Result]] = Future()


class RowRunner:
    """Runs rows on an engine that belongs to it from now on.

    Args:
        report: called with what was done, about once a second.

    Raises:
        ValueError: the cache does not hold one row, or the model has no tokenizer.
    """

    def __init__(
        self, engine: LLMEngine, task: RowTask, report: Callable[[BatchProgress], object] | None = None
    ) -> None:
        engine.check_params(task.params)
        if engine.tokenizer is None and task.kind != "score":
            raise ValueError(
                f"task={task.kind!r} needs a tokenizer, {engine.config.model} has none"
            )
        engine.open_stream().close()  # refuses a cache that is too small for long documents
        self.engine = engine
        self._prompter = Prompter(task)
        self._report = report
        self._progress = BatchProgress(num_engines=1)
        self._num_computed = 0
        self._reported = time.monotonic()
        self._submitted: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing is submitted once `_failure` is set
        self._failure: BaseException | None = None
        # Of the thread only:
        self._ids = itertools.count()
        self._jobs: deque[_Job] = deque()
        self._running: dict[str, tuple[_Job, int, RowRequest]] = {}
        self._thread = threading.Thread(target=self._run, name="rows", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[KeyedRow], *, num_bytes: int = 0) -> Future[list[Result]]:
        """Run rows; the future gives a result for each, in their order.

        Args:
            num_bytes: what they count for in reports.
        """
        job = _Job(rows, num_bytes)
        with self._lock:
            if self._failure is not None:
                raise RuntimeError("the engine has failed") from self._failure
            self._submitted.put(job)
        return job.future

    def close(self) -> None:
        """Finish what was submitted and end the thread."""
        self._submitted.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._take_jobs():
                self._fill()
                for delta in self.engine.step():
                    job, index, request = self._running[delta.request_id]
                    request.add(delta)
                    if delta.finished:
                        del self._running[delta.request_id]
                        self._finish(job, index, request.columns())
                self._tell()
        except BaseException as error:
            logger.exception("the engine has failed")
            with self._lock:
                self._failure = error
            self._take_jobs(wait=False)
            jobs = {id(job): job for job, _, _ in self._running.values()}
            for job in (*self._jobs, *jobs.values()):
                if not job.future.done():
                    job.future.set_exception(error)

    def _take_jobs(self, *, wait: bool = True) -> bool:
        """Take in what was submitted; wait for something if there is nothing to do.

        Returns:
            Whether to go on.
        """
        while wait and not self._jobs and not self._running:
            self._tell(now=True)
            if not self._take(self._submitted.get()):
                return False
        while not self._submitted.empty():
            if not self._take(self._submitted.get()):
                self._submitted.put(None)  # once all is done
                break
        return True

    def _take(self, job: _Job | None) -> bool:
        if job is None:
            return False
        if job.num_left:
            self._jobs.append(job)
        else:
            job.future.set_result([])
        return True

    def _fill(self) -> None:
        """Start rows, the oldest job's first, until the engine has all that a step can take."""
        most = self.engine.config.actual_max_num_seqs
        while self._jobs and len(self._running) < most:
            job = self._jobs[0]
            index, row = job.rows.popleft()
            if not job.rows:
                self._jobs.popleft()
            request_id, request = str(next(self._ids)), RowRequest(self._prompter)
            try:
                request.start(self.engine, request_id, row.values, row.key)
            except ValueError as error:
                self._finish(job, index, str(error))
            else:
                self._running[request_id] = (job, index, request)

    def _finish(self, job: _Job, index: int, result: Result) -> None:
        job.results[index] = result
        job.num_left -= 1
        self._progress.num_rows += 1
        self._progress.num_bad += isinstance(result, str)
        self._progress.num_bytes += job.bytes_per_row
        if not job.num_left:
            job.future.set_result(job.results)

    def _tell(self, *, now: bool = False) -> None:
        if self._report is None or not (now or time.monotonic() > self._reported + _REPORT_SECONDS):
            return
        computed = self.engine.core.counters.num_computed_tokens
        self._progress.num_tokens, self._num_computed = computed - self._num_computed, computed
        self._report(self._progress)
        self._progress, self._reported = BatchProgress(), time.monotonic()
