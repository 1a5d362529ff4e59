"""A batch over a corpus: Ray Data reads and distributes, engines compute, shards are committed.

What a run has committed is in its folder alone. So any part of it may die at any time, and another
run goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from paged_stream.batch.batch_config import BatchConfig
from paged_stream.batch.plan import BatchPlan, make_plan
from paged_stream.batch.progress import Bar, BatchProgress, Board
from paged_stream.batch.replicas import share_cluster
from paged_stream.batch.run_folder import RunFolder, check_settings
from paged_stream.batch.shard_worker import ShardWorker
from paged_stream.batch.shards import InputShard
from paged_stream.system.ray_extra import connect, import_ray
from paged_stream.version import __version__

T = TypeVar("T")
_READER_CPUS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """What a batch has done, in the end.

    Args:
        num_rows: rows with output; ``num_bad`` have none, and a reason in ``errors``.
        num_resumed: of the shards, those that were there before.
        seconds: this run's, without loading the model.
    """

    output: str
    num_rows: int
    num_bad: int
    prompt_tokens: int
    output_tokens: int
    num_shards: int
    num_resumed: int
    seconds: float

    def table(self) -> str:
        """For people."""
        rows = [
            ("rows", f"{self.num_rows:,}"),
            ("bad rows", f"{self.num_bad:,}" + (" (see errors/)" if self.num_bad else "")),
            ("prompt tokens", f"{self.prompt_tokens:,}"),
            ("output tokens", f"{self.output_tokens:,}"),
            ("shards", f"{self.num_shards:,}, {self.num_resumed:,} of them from before"),
            ("seconds", f"{self.seconds:,.1f} with the model loaded"),
            ("output", f"{self.output}/data"),
        ]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def run_batch(config: BatchConfig) -> BatchSummary:
    """Run a batch, or what is left of one.

    Joins the Ray cluster that this process is connected to or ``RAY_ADDRESS`` names; otherwise
    starts Ray on this machine.

    Raises:
        ValueError: settings, inputs, or a folder that holds another run.
        ImportError: Ray is not installed.
    """
    ray = import_ray("data")
    plan = make_plan(config)
    folder = RunFolder(config.output, plan.writer().suffix)
    settings = plan.settings()
    _check_folder(folder, config, settings)
    manifest = {"paged_stream": __version__, "settings": settings}
    folder.begin(manifest)
    records = folder.committed()
    done = {record["shard"] for record in records}
    shards = [shard for shard in plan.shards if shard.number not in done]
    seconds = 0.0
    if shards:
        connect(ray)
        seconds = _run_shards(ray, plan, shards, _weights(records))
        records = folder.committed()
    _check_records(plan, records)
    totals = {
        name: sum(record[name] for record in records)
        for name in ("rows", "bad", "prompt_tokens", "output_tokens")
    }
    folder.complete(manifest, totals, records)
    return BatchSummary(
        output=config.output,
        num_rows=totals["rows"],
        num_bad=totals["bad"],
        prompt_tokens=totals["prompt_tokens"],
        output_tokens=totals["output_tokens"],
        num_shards=len(plan.shards),
        num_resumed=len(done),
        seconds=seconds,
    )


def _check_folder(folder: RunFolder, config: BatchConfig, settings: Mapping[str, Any]) -> None:
    manifest = folder.manifest()
    if manifest is None:
        return
    if not config.resume:
        raise ValueError(
            f"output {config.output} holds a run ({manifest['status']}); pass resume to go on with "
            "it, or another output"
        )
    check_settings(manifest["settings"], settings, config.output)


def _weights(records: Sequence[Mapping[str, Any]]) -> str | None:
    """The fingerprint of the weights behind what is committed."""
    return records[0]["weights"] if records else None


def _check_records(plan: BatchPlan, records: Sequence[Mapping[str, Any]]) -> None:
    missing = len(plan.shards) - len(records)
    if missing:
        raise RuntimeError(
            f"{missing} shards are not in {plan.config.output} as this process sees it: all nodes "
            "must share the folder"
        )
    if len({record["weights"] for record in records}) > 1:
        raise RuntimeError(f"nodes have different weights under the name {plan.config.model}")


def _run_shards(
    ray: Any, plan: BatchPlan, shards: Sequence[InputShard], weights: str | None
) -> float:
    """Compute and commit shards; returns the seconds it took once the first worker began."""
    board = ray.remote(num_cpus=0)(Board).remote()
    num_bytes = sum(shard.num_bytes for shard in shards)
    bar = Bar(lambda: _ask(ray, board.total, BatchProgress()), num_bytes, len(shards))
    with bar, _quiet_data(ray):
        try:
            for _ in _pipeline(ray, plan, shards, weights, board).iter_rows():
                bar.commit()
        except Exception:
            if (reason := _ask(ray, board.failure, None)) is not None:
                raise ValueError(reason) from None  # in one line, without Ray's frames
            raise
        bar.show()
    return bar.seconds


def _ask(ray: Any, method: Any, default: T) -> T:
    """What the board says; it may be gone with its node, and the batch goes on without it."""
    try:
        answer: T = ray.get(method.remote())
        return answer
    except ray.exceptions.RayError:
        return default


def _pipeline(
    ray: Any, plan: BatchPlan, shards: Sequence[InputShard], weights: str | None, board: Any
) -> Any:
    """The lazy dataset of shards committed."""
    from paged_stream.batch.shard_source import ShardSource

    replicas = share_cluster(ray, plan.engine, plan.config.num_replicas)
    # In Ray's tasks of their own; most of the processors belong to the engines.
    read = ray.data.read_datasource(
        ShardSource(shards, plan.config.row_limit),
        override_num_blocks=len(shards),
        num_cpus=_READER_CPUS,
    )
    settings = {
        "shards": shards,
        "engine": replace(plan.engine, num_threads=replicas.num_threads),
        "task": plan.task,
        "writer": plan.writer(),
        "output": plan.config.output,
        "weights": weights,
        "board": board,
    }
    ahead = plan.shards_ahead
    return replicas.map_batches(ray, read, ShardWorker, settings, batch_size=1, batches_ahead=ahead)


@contextmanager
def _quiet_data(ray: Any) -> Iterator[None]:
    """Ray Data without bars and log lines of its own."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.print_on_execution_start, logger.level
    context.enable_progress_bars = context.print_on_execution_start = False
    logger.setLevel(logging.CRITICAL)  # what fails is raised
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before[:2]
        logger.setLevel(before[2])


def describe_batch(config: BatchConfig, *, num_rows: int = 5) -> str:
    """What `run_batch` would do, with the prompts of the first rows.

    Raises:
        ValueError: as `run_batch`.
        ImportError: Ray is not installed.
    """
    from paged_stream.batch.description import describe_plan

    ray = import_ray("data")
    plan = make_plan(config)
    connect(ray)
    replicas = share_cluster(ray, plan.engine, config.num_replicas)
    return describe_plan(plan, replicas, num_rows)
