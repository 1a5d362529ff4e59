"""Measuring: alternating runs in one process, medians, the machine's own ceilings, results.

A file of results holds one run, the last one: ``benchmarks/results/<name>.jsonl`` is replaced,
never added to, so all its lines come from one machine and one version.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

import paged_stream
from paged_stream import ops
from paged_stream.layers.large_pages import zeros_in_large_pages
from paged_stream.system.whole_files import write_whole

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = RESULTS.parent.parent / "build" / "evidence"  # of runs that show only that it works
_MATRIX = 2048  # rows, columns and depth of the products that show the matrix rate


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring: the question, then an example."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_results_option(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="default: %(default)s"
    )


Key = TypeVar("Key")


def alternate(
    candidates: Mapping[Key, Callable[[], Any]], *, repeats: int, warmup: int = 1
) -> dict[Key, list[float]]:
    """Time the candidates in turn, so that a slow spell of the machine hits all of them.

    Returns:
        Seconds of each run, per candidate.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in candidates}
    for run in range(warmup + repeats):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            if run >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: Sequence[float]) -> float:
    """Half the range over the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The most that all threads together reach on this machine.

    Args:
        bandwidth: bytes read per second.
        matrix_rate: floating point operations per second of a large product.
    """

    bandwidth: float
    matrix_rate: float

    def floor_seconds(self, num_bytes: float, flops: float) -> float:
        """Least time in which so many bytes are read and so many operations done."""
        return max(num_bytes / self.bandwidth, flops / self.matrix_rate)


def read_bandwidth(num_bytes: int) -> float:
    """Bytes per second at which a buffer of this size, in large pages, is read again and again.

    The size matters: weights that fit a cache are read faster than those that do not.
    """
    columns = 1024
    data = zeros_in_large_pages((max(1, num_bytes // (4 * columns)), columns), torch.float32)
    data.fill_(1)
    vector = torch.ones(columns)
    seconds = alternate({"sum": data.sum, "product": lambda: data @ vector}, repeats=7)
    return data.nbytes / min(min(times) for times in seconds.values())


def matrix_rate() -> float:
    """Operations per second of the fastest product: torch's and the engine's, float32 and bfloat16.

    A rate that one of them reaches is within the machine's reach, whatever the benchmark computes
    in.
    """
    candidates: dict[str, Callable[[], Any]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.randn(_MATRIX, _MATRIX).to(dtype) for _ in range(2))
        packed = ops.pack_linear_weight(right)
        candidates[f"matmul {dtype}"] = partial(torch.matmul, left, right)
        candidates[f"linear {dtype}"] = partial(ops.linear, left, packed, None, _MATRIX)
    seconds = alternate(candidates, repeats=5)
    return 2 * _MATRIX**3 / min(min(times) for times in seconds.values())


def machine() -> dict[str, Any]:
    # What torch 2.10 does not tell yet.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "cpu": capabilities.get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "isa": ops.cpu_isa(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "paged_stream": paged_stream.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def write_results(name: str, rows: Sequence[dict[str, Any]], folder: Path = RESULTS) -> None:
    """Make ``rows`` what ``<name>.jsonl`` holds; each gets a description of the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    described = machine()
    lines = [json.dumps({"benchmark": name, **row, "machine": described}) + "\n" for row in rows]
    write_whole(folder / f"{name}.jsonl", ["".join(lines).encode()])


def read_results(folder: Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """The rows of every file, by its name."""
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }
