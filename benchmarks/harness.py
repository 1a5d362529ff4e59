"""Measuring: alternating runs in one process, medians, the machine's own ceiling, JSON lines."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import paged_stream
from paged_stream import ops

RESULTS = Path(__file__).parent / "results"


def alternate(
    candidates: dict[str, Callable[[], Any]], *, repeats: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Time the candidates in turn, so that a slow spell of the machine hits all of them.

    Returns:
        Seconds of each run, per candidate.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in range(warmup + repeats):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if run >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> float:
    """Half the range over the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def read_bandwidth(*, megabytes: int = 512) -> float:
    """Bytes per second at which all threads together read memory that no cache holds."""
    data = torch.ones(megabytes << 18, dtype=torch.float32)
    times = alternate({"sum": data.sum}, repeats=7)["sum"]
    return data.nbytes / min(times)


def machine() -> dict[str, Any]:
    return {
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "isa": ops.cpu_isa(),
        "torch": torch.__version__,
        "paged_stream": paged_stream.__version__,
    }


def record(benchmark: str, **fields: Any) -> None:
    """Append one result to ``benchmarks/results/<benchmark>.jsonl``."""
    RESULTS.mkdir(exist_ok=True)
    line = {"benchmark": benchmark, **fields, "machine": machine()}
    with (RESULTS / f"{benchmark}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
