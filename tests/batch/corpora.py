"""Inputs for batches, and a batch without Ray: the same workers, one after the other."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from paged_stream import SamplingParams
from paged_stream.batch.batch_config import BatchConfig
from paged_stream.batch.listing import to_parquet
from paged_stream.batch.parts import Part
from paged_stream.batch.plan import make_plan
from paged_stream.batch.run_folder import RunFolder
from paged_stream.batch.shard_worker import ShardWorker

ENGINE = {
    "num_sink_tokens": 4,
    "window_size": 24,
    "block_size": 8,
    "dtype": "float32",
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "chunk_size": 16,
    "kv_cache_memory_bytes": 4 << 20,
}


def config(
    model: Path, folder: Path, source: Path | str | list[Path], **settings: Any
) -> BatchConfig:
    """A batch with random sampling, on a tiny model, in many shards."""
    inputs = [source] if isinstance(source, Path | str) else source
    params = {"max_tokens": 12, "temperature": 1.0, "seed": 3, "ignore_eos": True}
    defaults = {
        "sampling_params": SamplingParams(**(params | settings.pop("params", {}))),
        "engine": ENGINE | settings.pop("engine", {}),
        "shard_bytes": 600,
    }
    return BatchConfig(
        input=list(map(str, inputs)),
        output=str(folder),
        model=str(model),
        **(defaults | settings),
    )


def texts(count: int, longest: int = 90) -> list[str]:
    generator = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz     .,"
    return [
        "".join(generator.choices(letters, k=generator.randint(2, longest))) for _ in range(count)
    ]


def write_lines(path: Path, rows: list[Any]) -> Path:
    """JSON lines; bytes are written as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def run_here(batch: BatchConfig, *, only: int | None = None) -> None:
    """Run a batch, or so many of its parts, in this process."""
    folder = RunFolder(batch.output, str(batch.format))
    begun = folder.record()
    plan = make_plan(batch, begun)
    folder.begin({"settings": plan.settings()}, to_parquet(plan.input.files))
    if batch.retry_errors:
        folder.forget_bad()
    committed = folder.committed()
    worker = ShardWorker(
        engine=plan.engine,
        task=plan.task,
        writer=plan.writer(),
        output=batch.output,
        weights=next(iter(committed.weights), None),
        is_resumed=begun is not None,
        board=SimpleNamespace(add=SimpleNamespace(remote=lambda progress: None)),
    )

    async def run() -> None:
        parts = (part for shard in plan.input.shards for part in plan.input.reader.parts(shard))
        left = (p for p in parts if p.number not in committed.parts.get(p.shard, ()))
        chosen = itertools.islice(left, only)
        await asyncio.gather(*(worker(_row(part)) for part in chosen))

    def _row(part: Part) -> pa.Table:
        return pa.table({"part": pa.array([part.to_bytes()], pa.large_binary())})

    asyncio.run(run())


def outputs(folder: str | Path) -> list[dict[str, Any]]:
    """All rows with output, by shard and row."""
    rows = []
    for path in sorted(Path(folder, "data").iterdir()):
        if path.suffix == ".parquet":
            rows += parquet.read_table(path).to_pylist()
        else:
            rows += [json.loads(line) for line in path.read_text().splitlines()]
    return rows


def errors(folder: str | Path) -> list[dict[str, Any]]:
    """All rows without."""
    lines = [path.read_text().splitlines() for path in sorted(Path(folder, "errors").iterdir())]
    return [json.loads(line) for part in lines for line in part]


def files(folder: str | Path) -> dict[str, bytes]:
    """Every committed file and what is in it."""
    names = ("data", "errors", "shards")
    paths = [path for name in names for path in sorted(Path(folder, name).iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
