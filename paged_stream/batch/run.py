"""A batch over a corpus, from its folder's first check to its summary.

What a run has committed is in its folder alone. So any part of it may die at any time, and another
run goes on from there.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from paged_stream.batch.batch_config import BatchConfig
from paged_stream.batch.listing import to_parquet
from paged_stream.batch.openai_rows import import_service
from paged_stream.batch.outcome import BatchSummary, Done, ErrorBudget
from paged_stream.batch.plan import BatchPlan, make_plan
from paged_stream.batch.replicas import share_cluster, share_machine
from paged_stream.batch.run_folder import Committed, RunFolder, RunRecord, check_settings
from paged_stream.batch.run_lock import RunLock
from paged_stream.batch.shard_run import ShardRun
from paged_stream.system.ray_extra import connect, import_ray
from paged_stream.version import __version__

logger = logging.getLogger(__name__)


def run_batch(config: BatchConfig) -> BatchSummary:
    """Run a batch, or what is left of one.

    Joins the Ray cluster that this process is connected to or ``RAY_ADDRESS`` names; otherwise
    starts Ray on this machine.

    Raises:
        ValueError: settings, inputs, or a folder that holds another run or that another process is
            at work on.
        OSError: a file or folder that cannot be reached or written.
        ImportError: Ray, or the service that requests need, is not installed.
    """
    ray = import_ray("data")
    if config.task == "openai":
        import_service()
    folder = RunFolder(config.output, str(config.format))
    begun = folder.record()
    if begun is not None and not config.resume:
        raise ValueError(
            f"output {config.output} holds a run ({begun.status}); pass resume to go on with it, "
            "or another output"
        )
    plan = make_plan(config, begun)
    for note in plan.input.notes:
        logger.warning("%s", note)
    if begun is not None:
        check_settings(begun.settings, plan.settings(), config.output)
    folder.files.make()
    with RunLock(folder.files) as lock:
        if folder.record() != begun:
            raise ValueError(f"output {config.output} has changed meanwhile; try again")
        return _run(ray, plan, folder, lock, begun)


def _run(
    ray: Any, plan: BatchPlan, folder: RunFolder, lock: RunLock, begun: RunRecord | None
) -> BatchSummary:
    config = plan.config
    manifest = {"paged_stream": __version__, "settings": plan.settings()}
    folder.begin(manifest, to_parquet(plan.input.files))
    if config.retry_errors:
        logger.warning("%s rows without output are computed again", f"{folder.forget_bad():,}")
    before = committed = folder.committed()
    budget, done = _budget(config, committed), Done()
    if committed.num_shards < len(plan.input.shards) and not budget.is_hopeless:
        connect(ray)
        run = ShardRun(ray, plan, committed, lock, is_resumed=begun is not None)
        done = run.until_done(budget)
        committed = folder.committed()
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
        done=done,
        has_too_many_bad=_budget(config, committed).is_over,
    )
    folder.write_summary(summary.to_json())
    return summary


def _budget(config: BatchConfig, committed: Committed) -> ErrorBudget:
    assert not isinstance(config.max_errors, str)  # it was read
    return ErrorBudget(config.max_errors, committed.rows + committed.bad, committed.bad)


def _check_committed(plan: BatchPlan, committed: Committed) -> None:
    missing = len(plan.input.shards) - committed.num_shards
    if missing:
        raise ValueError(
            f"{missing} shards are not in {plan.config.output} as this process sees it: all nodes "
            "must share the folder"
        )
    if len(committed.weights) > 1:
        raise ValueError(f"nodes have different weights under the name {plan.config.model}")


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
