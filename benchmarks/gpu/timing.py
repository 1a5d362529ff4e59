"""Time on a device, and what the device can do at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.gpu.sections import Section


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_seconds(
    device: torch.device, work: Callable[[], object], *, repeats: int, runs: int = 1
) -> float:
    """Median time of ``work`` on the device, queued ``runs`` times in a row, so that the device
    need not wait for the host in between."""
    for _ in range(2):
        work()
    synchronize(device)
    seconds = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(runs):
                work()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3 / runs)
        else:
            began = time.perf_counter()
            for _ in range(runs):
                work()
            seconds.append((time.perf_counter() - began) / runs)
    return statistics.median(seconds)


def wall_seconds(device: torch.device, work: Callable[[], object], *, repeats: int) -> float:
    """Median time that the host sees ``work`` take, the device's included."""
    seconds = []
    for run in range(repeats + 2):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        if run >= 2:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def copy_bandwidth(section: Section) -> float:
    """Bytes per second, read plus written, of a large copy within the device's memory."""
    source = torch.empty(section.sizes.copy_bytes // 4, device=section.device).normal_()
    target = torch.empty_like(source)
    seconds = device_seconds(
        section.device, lambda: target.copy_(source), repeats=section.sizes.repeats
    )
    return 2 * source.nbytes / seconds


def matrix_rate(section: Section) -> float:
    """Operations per second of a large product of random bfloat16 matrices."""
    size = section.sizes.matrix
    left, right = (
        torch.randn(size, size, device=section.device).to(torch.bfloat16) for _ in range(2)
    )
    seconds = device_seconds(
        section.device, lambda: left @ right, repeats=section.sizes.repeats, runs=4
    )
    return 2 * size**3 / seconds


def check_ceilings(section: Section) -> None:
    """Record both ceilings; other sections find them in the file."""
    for name, measure, unit in (
        ("copy bandwidth", copy_bandwidth, "B/s"),
        ("bf16 matrix rate", matrix_rate, "FLOP/s"),
    ):
        value = section.attempt(name, measure, section)
        if value is not None:
            section.record(name, value=value, unit=unit)
