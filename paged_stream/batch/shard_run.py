"""Shards on Ray: Ray Data reads and distributes, engines compute, parts are committed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from paged_stream.batch.lifeline import Lifeline
from paged_stream.batch.outcome import Done, ErrorBudget
from paged_stream.batch.plan import BatchPlan
from paged_stream.batch.progress import Bar, BatchProgress, Board
from paged_stream.batch.replicas import share_cluster
from paged_stream.batch.run_folder import Committed
from paged_stream.batch.run_lock import RunLock
from paged_stream.batch.shard_worker import ShardWorker

T = TypeVar("T")
_READER_CPUS = 0.1


class ShardRun:
    """Computes the parts of a plan that are not committed.

    Args:
        ray: the module, connected to a cluster.
        lock: of the run's folder.
        is_resumed: whether the folder may have output of parts that are not committed.
    """

    def __init__(
        self, ray: Any, plan: BatchPlan, committed: Committed, lock: RunLock, *, is_resumed: bool
    ) -> None:
        self._ray = ray
        self._plan = plan
        self._committed = committed
        self._lock = lock
        self._is_resumed = is_resumed
        self._replicas = share_cluster(ray, plan.engine, plan.config.num_replicas)
        # Later, what they have themselves is not free.
        self._have_room = self._replicas.have_room(ray.available_resources())
        self._board = ray.remote(num_cpus=0)(Board).remote()

    def until_done(self, budget: ErrorBudget) -> Done:
        """Compute and commit what is left, or until too many rows are bad.

        Raises:
            ValueError: a worker cannot work, or another driver has taken over; in one line.
        """
        lifeline = Lifeline(self._ray.util.get_node_ip_address())
        try:
            return self._until_done(budget, lifeline)
        finally:
            lifeline.close()

    def _until_done(self, budget: ErrorBudget, lifeline: Lifeline) -> Done:
        done = Done()
        num_bytes = self._plan.input.shards.num_bytes - self._committed.input_bytes
        bar = Bar(
            lambda: self._ask(self._board.total, BatchProgress()),
            num_bytes,
            self._replicas.num_replicas,
            self._waiting,
        )
        with bar, _data_context(self._ray):
            try:
                for row in self._pipeline(lifeline).iter_rows():
                    bar.commit()
                    done.add(row)
                    budget.add(row["rows"] + row["bad"], row["bad"])
                    if budget.is_hopeless:
                        break
                    self._lock.check()
            except Exception as error:
                reason = self._ask(self._board.failure, None) or _reason(error)
                if reason is not None:
                    raise ValueError(reason) from None  # in one line, without Ray's frames
                raise
            bar.show()
        return replace(done, start_seconds=bar.start_seconds, seconds=bar.seconds)

    def _ask(self, method: Any, default: T) -> T:
        """What the board says; it may be gone with its node, and the batch goes on without it."""
        try:
            answer: T = self._ray.get(method.remote())
            return answer
        except self._ray.exceptions.RayError:
            return default

    def _waiting(self) -> str:
        if self._have_room:
            return "starting engines"
        free, whole = self._ray.available_resources(), self._ray.cluster_resources()
        return self._replicas.waiting(free, whole)

    def _pipeline(self, lifeline: Lifeline) -> Any:
        """The lazy dataset of what was committed: what `ShardWorker` counts of each part."""
        from paged_stream.batch.shard_source import ShardSource

        plan, ray = self._plan, self._ray
        source = ShardSource(plan.input.shards, plan.input.reader, self._committed)
        # In Ray's tasks of their own; most of the processors belong to the engines.
        read = ray.data.read_datasource(
            source, override_num_blocks=source.num_tasks, num_cpus=_READER_CPUS
        )
        settings = {
            "engine": replace(plan.engine, num_threads=self._replicas.num_threads),
            "task": plan.task,
            "writer": plan.writer(),
            "output": plan.config.output,
            "weights": next(iter(self._committed.weights), None),
            "is_resumed": self._is_resumed,
            "board": self._board,
            "lifeline": lifeline.address,
        }
        ahead = plan.parts_ahead
        return self._replicas.map_batches(
            ray, read, ShardWorker, settings, batch_size=1, batches_ahead=ahead
        )


def _reason(error: Exception) -> str | None:
    """What a task on Ray has failed for, if that is something outside the program."""
    cause = getattr(error, "cause", None)
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, OSError) else None


@contextmanager
def _data_context(ray: Any) -> Iterator[None]:
    """Ray Data without bars and log lines of its own, which hands each part on by itself."""
    context, its_logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    names = ("enable_progress_bars", "print_on_execution_start", "target_max_block_size")
    before, level = [getattr(context, name) for name in names], its_logger.level
    # Ray Data would wait for 128 MiB of parts before it hands them on.
    for name, value in zip(names, (False, False, 1), strict=True):
        setattr(context, name, value)
    its_logger.setLevel(logging.CRITICAL)  # what fails is raised
    try:
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(context, name, value)
        its_logger.setLevel(level)
