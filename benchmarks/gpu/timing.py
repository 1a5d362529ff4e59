"""Time on a device, and what the device can do at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu.sections import Case, Section


def device_seconds(work: Callable[[], object], *, repeats: int, runs: int = 1) -> float:
    """Median time of ``work`` on the device, queued ``runs`` times in a row, so that the device
    need not wait for the host in between."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(runs):
            work()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3 / runs)
    return statistics.median(seconds)


def wall_seconds(work: Callable[[], object], *, repeats: int) -> float:
    """Median time that the host sees ``work`` take, the device's included."""
    seconds = []
    for run in range(repeats + 2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if run >= 2:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def copy_bandwidth(section: Section) -> float:
    """Bytes per second, read plus written, of a large copy within the device's memory."""
    source = torch.empty(section.sizes.copy_bytes // 4, device=section.device).normal_()
    target = torch.empty_like(source)
    seconds = device_seconds(lambda: target.copy_(source), repeats=section.sizes.repeats)
    return 2 * source.nbytes / seconds


def matrix_rate(section: Section) -> float:
    """Operations per second of a large product of random bfloat16 matrices."""
    size = section.sizes.matrix
    left, right = (
        torch.randn(size, size, device=section.device).to(torch.bfloat16) for _ in range(2)
    )
    seconds = device_seconds(lambda: left @ right, repeats=section.sizes.repeats, runs=4)
    return 2 * size**3 / seconds


BANDWIDTH, MATRIX_RATE = "copy bandwidth", "bf16 matrix rate"


def ceiling_cases(section: Section) -> list[Case]:
    """Both ceilings; other sections find them in the file."""
    return [
        Case(BANDWIDTH, partial(_record, name=BANDWIDTH, measure=copy_bandwidth, unit="B/s")),
        Case(MATRIX_RATE, partial(_record, name=MATRIX_RATE, measure=matrix_rate, unit="FLOP/s")),
    ]


def _record(section: Section, *, name: str, measure: Callable[[Section], float], unit: str) -> None:
    section.record(name, value=measure(section), unit=unit)


def share(amount: float, seconds: float, ceiling: float | None) -> float | None:
    """The part of a ceiling that is reached; ``None`` if the ceiling was not measured."""
    return None if ceiling is None else amount / seconds / ceiling
