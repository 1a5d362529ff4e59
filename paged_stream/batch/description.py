"""A batch's plan as text: what a dry run prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from paged_stream.batch.openai_rows import read_request
from paged_stream.batch.plan import BatchPlan
from paged_stream.batch.prompts import Prompter
from paged_stream.batch.replicas import Replicas
from paged_stream.batch.row_task import WRITING_TASKS
from paged_stream.info import describe

_SHOWN = 100  # characters of a prompt


def describe_plan(plan: BatchPlan, replicas: Replicas, num_rows: int) -> str:
    """Describe a plan and the prompts of its first rows."""
    config = plan.config
    each = f"{replicas.num_gpus:g} GPU" if replicas.num_gpus else f"{replicas.num_threads} threads"
    kinds = " and ".join(dict.fromkeys(kind.format for kind in plan.input.files.kinds))
    part_bytes = _size(plan.input.reader.size.num_bytes)
    rows = [
        ("task", _task(plan)),
        (
            "input",
            f"{len(plan.input.files):,} files of {kinds}, {_size(plan.input.shards.num_bytes)}, in "
            f"{len(plan.input.shards):,} shards, committed in parts of {part_bytes}",
        ),
        ("output", f"{config.output}, {config.format}: {', '.join(plan.task.columns)}"),
        ("replicas", f"{replicas.num_replicas} engines, {each} each"),
        (
            "work per replica",
            f"{plan.engine.actual_max_num_seqs} rows at a time, from {plan.parts_ahead} parts",
        ),
    ]
    rows += [("note", note) for note in plan.input.notes]
    if _num_parts(plan) < 4 * replicas.num_replicas:
        rows.append(("note", "few parts for so many replicas; lower shard_bytes to even them out"))
    width = max(len(label) for label, _ in rows)
    lines = [f"{label:<{width}}  {value}" for label, value in rows]
    # What has no influence on memory is left out.
    settings = {k: v for k, v in asdict(plan.engine).items() if k != "model"}
    lines += ["", f"each replica, run on this machine:\n{describe(config.model, **settings)}"]
    return "\n".join([*lines, "", *_prompts(plan, num_rows)])


def _task(plan: BatchPlan) -> str:
    task = plan.task
    if task.task == "openai":
        return f"answer requests, up to {task.sampling_params.max_tokens} tokens if they do not say"
    prompt = "a template" if task.prompt_template is not None else f"column {task.input_column!r}"
    if task.task not in WRITING_TASKS:
        return f"{task.task} {prompt}"
    return f"{task.task} from {prompt}, up to {task.sampling_params.max_tokens} tokens"


def _prompts(plan: BatchPlan, num_rows: int) -> list[str]:
    """A line for each of the first rows: its prompt, or why it has none."""
    prompter, lines = Prompter(plan.task), []
    for part in plan.sample:
        entries = [(bad.row, f"bad: {bad.reason}") for bad in part.bad]
        for index, row in enumerate(part.rows[:num_rows]):
            try:
                text = _prompt(prompter, part.value(index))
            except ValueError as error:
                text = f"bad: {error}"
            entries.append((row, text if len(text) <= _SHOWN else text[:_SHOWN] + "..."))
        lines += [f"shard {part.shard} row {row}: {text}" for row, text in sorted(entries)]
        if len(lines) >= num_rows:
            break
    return lines[:num_rows]


def _prompt(prompter: Prompter, row: Mapping[str, Any]) -> str:
    """Raises ValueError if a row has none."""
    if prompter.task.task != "openai":
        return repr(prompter.prompt(row))
    request = read_request(row)
    return f"{request.url} {request.body}"


def _num_parts(plan: BatchPlan) -> int:
    """Parts that there are at least; large compressed files have more."""
    return max(
        len(plan.input.shards), plan.input.shards.num_bytes // plan.input.reader.size.num_bytes
    )


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.4g} TiB"
