"""A batch over a corpus: Ray Data reads and distributes, engines compute, parts are committed.

What a run has committed is in its folder alone. So any part of it may die at any time, and another
run goes on from there.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from paged_stream.batch.batch_config import BatchConfig
from paged_stream.batch.openai_rows import import_service
from paged_stream.batch.outcome import BatchSummary, ErrorBudget
from paged_stream.batch.plan import BatchPlan, make_plan
from paged_stream.batch.progress import Bar, BatchProgress, Board
from paged_stream.batch.replicas import share_cluster, share_machine
from paged_stream.batch.run_folder import Committed, RunFolder, check_settings
from paged_stream.batch.shard_worker import ShardWorker
from paged_stream.system.ray_extra import connect, import_ray
from paged_stream.version import __version__

logger = logging.getLogger(__name__)
T = TypeVar("T")
_READER_CPUS = 0.1


def run_batch(config: BatchConfig) -> BatchSummary:
    """Run a batch, or what is left of one.

    Joins the Ray cluster that this process is connected to or ``RAY_ADDRESS`` names; otherwise
    starts Ray on this machine.

    Raises:
        ValueError: settings, inputs, or a folder that holds another run.
        ImportError: Ray, or the service that requests need, is not installed.
    """
    ray = import_ray("data")
    if config.task == "openai":
        import_service()
    plan = make_plan(config)
    for note in plan.input.notes:
        logger.warning("%s", note)
    folder = RunFolder(config.output, plan.writer().suffix)
    settings = plan.settings()
    _check_folder(folder, plan, settings)
    manifest = {"paged_stream": __version__, "settings": settings}
    folder.begin(manifest, plan.input.files)
    before = committed = folder.committed()
    budget = _budget(config, committed)
    start_seconds = seconds = 0.0
    if committed.num_shards < len(plan.input.shards) and not budget.is_hopeless:
        connect(ray)
        start_seconds, seconds = _run_shards(ray, plan, committed, budget)
        committed = folder.committed()
    is_over = _budget(config, committed).is_over
    if not budget.is_hopeless:
        _check_committed(plan, committed)
        folder.complete(manifest, committed)
    summary = BatchSummary(
        output=config.output,
        num_rows=committed.rows,
        num_bad=committed.bad,
        prompt_tokens=committed.prompt_tokens,
        output_tokens=committed.output_tokens,
        num_parts=committed.num_parts,
        num_resumed=before.num_parts,
        new_rows=committed.rows + committed.bad - before.rows - before.bad,
        new_prompt_tokens=committed.prompt_tokens - before.prompt_tokens,
        new_output_tokens=committed.output_tokens - before.output_tokens,
        start_seconds=start_seconds,
        seconds=seconds,
        has_too_many_bad=is_over,
    )
    folder.write_summary(summary.to_json())
    return summary


def _budget(config: BatchConfig, committed: Committed) -> ErrorBudget:
    assert not isinstance(config.max_errors, str)  # it was read
    return ErrorBudget(config.max_errors, committed.rows + committed.bad, committed.bad)


def _check_folder(folder: RunFolder, plan: BatchPlan, settings: Mapping[str, Any]) -> None:
    manifest, config = folder.manifest(), plan.config
    if manifest is None:
        return
    if not config.resume:
        raise ValueError(
            f"output {config.output} holds a run ({manifest['status']}); pass resume to go on with "
            "it, or another output"
        )
    saved = manifest["settings"]
    if saved.get("input") != settings["input"]:
        before, after = folder.first_difference(plan.input.files)
        saved, settings = {**saved, "input": before}, {**settings, "input": after}
    check_settings(saved, settings, config.output)


def _check_committed(plan: BatchPlan, committed: Committed) -> None:
    missing = len(plan.input.shards) - committed.num_shards
    if missing:
        raise RuntimeError(
            f"{missing} shards are not in {plan.config.output} as this process sees it: all nodes "
            "must share the folder"
        )
    if len(committed.weights) > 1:
        raise RuntimeError(f"nodes have different weights under the name {plan.config.model}")


def _run_shards(
    ray: Any, plan: BatchPlan, committed: Committed, budget: ErrorBudget
) -> tuple[float, float]:
    """Compute and commit what is left, or until too many rows are bad; returns the seconds that it
    took before the first worker began, and from then on."""
    board = ray.remote(num_cpus=0)(Board).remote()
    num_bytes = plan.input.shards.num_bytes - committed.input_bytes
    bar = Bar(lambda: _ask(ray, board.total, BatchProgress()), num_bytes)
    with bar, _data_context(ray):
        try:
            for row in _pipeline(ray, plan, committed, board).iter_rows():
                bar.commit()
                budget.add(row["rows"] + row["bad"], row["bad"])
                if budget.is_hopeless:
                    break
        except Exception:
            if (reason := _ask(ray, board.failure, None)) is not None:
                raise ValueError(reason) from None  # in one line, without Ray's frames
            raise
        bar.show()
    return bar.start_seconds, bar.seconds


def _ask(ray: Any, method: Any, default: T) -> T:
    """What the board says; it may be gone with its node, and the batch goes on without it."""
    try:
        answer: T = ray.get(method.remote())
        return answer
    except ray.exceptions.RayError:
        return default


def _pipeline(ray: Any, plan: BatchPlan, committed: Committed, board: Any) -> Any:
    """The lazy dataset of what was committed: rows and bad rows of each part."""
    from paged_stream.batch.shard_source import ShardSource

    replicas = share_cluster(ray, plan.engine, plan.config.num_replicas)
    source = ShardSource(plan.input.shards, plan.input.reader, committed)
    # In Ray's tasks of their own; most of the processors belong to the engines.
    read = ray.data.read_datasource(
        source, override_num_blocks=source.num_tasks, num_cpus=_READER_CPUS
    )
    settings = {
        "engine": replace(plan.engine, num_threads=replicas.num_threads),
        "task": plan.task,
        "writer": plan.writer(),
        "output": plan.config.output,
        "weights": next(iter(committed.weights), None),
        "board": board,
    }
    ahead = plan.parts_ahead
    return replicas.map_batches(ray, read, ShardWorker, settings, batch_size=1, batches_ahead=ahead)


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


def describe_batch(config: BatchConfig, *, num_rows: int = 5) -> str:
    """What `run_batch` would do, with the prompts of the first rows. Starts nothing.

    Engines are shared out over the cluster that this process is connected to, or this machine.

    Raises:
        ValueError: as `run_batch`.
    """
    from paged_stream.batch.description import describe_plan

    plan = make_plan(config)
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        replicas = share_cluster(ray, plan.engine, config.num_replicas)
    else:
        replicas = share_machine(plan.engine, config.num_replicas)
    return describe_plan(plan, replicas, num_rows)
