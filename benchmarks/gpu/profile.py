"""What a decode step consists of: its kernels by their time, how many there are, what lies between;
and the sampler alone."""

from __future__ import annotations

from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import models
from benchmarks.gpu.sections import Case, Section
from benchmarks.gpu.steps import decode_runner
from benchmarks.gpu.timing import device_seconds
from paged_stream import ops

_LAUNCHES = 3  # that are looked at, after two that are not
_LARGEST = 12  # kernels that get a row of their own


def profile_cases(section: Section) -> list[Case]:
    shape = section.sizes.shapes[0]
    cases = [
        Case(name, partial(_sample, name=name, rows=rows))
        for rows in section.sizes.streams
        for name in [f"sampler, {rows} x {section.sizes.vocab} logits"]
    ]
    for batch, visible in section.sizes.decode_batches[:2]:
        name = f"profile of {shape}, {batch} x {visible} keys"
        run = partial(_profile, name=name, shape=shape, batch=batch, visible=visible)
        cases.append(Case(name, run))
    return cases


def _sample(section: Section, *, name: str, rows: int) -> None:
    device = section.device
    logits = 3 * torch.randn(rows, section.sizes.vocab, device=device)
    settings = torch.full((rows,), 0.8), torch.zeros(rows), torch.full((rows,), 0.9)
    temperature, min_p, top_p = (values.double().to(device) for values in settings)
    positions = torch.arange(rows, device=device)
    sampling = ops.SamplingTensors(
        temperature, min_p, torch.zeros_like(positions), top_p, positions
    )
    run = partial(ops.sample_tokens, logits, sampling, positions)
    seconds = device_seconds(run, repeats=section.sizes.repeats, runs=4)
    section.record(name, value=seconds * 1e6, unit="us")


def _profile(section: Section, *, name: str, shape: str, batch: int, visible: int) -> None:
    runner = decode_runner(models.random_model(shape, section.device), batch, visible)
    step = models.step_of(batch, visible, 10_000, num_steps=models.NUM_STEPS)
    for _ in range(2):
        runner.execute(step)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(_LAUNCHES):
            runner.execute(step)
        torch.cuda.synchronize()
    spans = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in found.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    if not spans:
        section.skip(name, "the profiler saw no kernels")
        return
    steps = _LAUNCHES * models.NUM_STEPS
    section.record(f"{name}: launches a step", value=len(spans) / steps, unit="kernels")
    whole = max(end for _, end, _ in spans) - min(start for start, _, _ in spans)
    idle = whole - _covered(spans)
    section.record(f"{name}: time a step", value=whole / steps, unit="us")
    section.record(f"{name}: nothing runs", value=100 * idle / whole, unit="%")
    totals: dict[str, list[float]] = {}
    for start, end, kernel in spans:
        totals.setdefault(kernel, []).append(end - start)
    for kernel, times in sorted(totals.items(), key=lambda item: -sum(item[1]))[:_LARGEST]:
        section.record(
            f"{name}: {kernel[:100]}",
            value=sum(times) / steps,
            unit="us a step",
            share=sum(times) / whole,
            of="the time",
            launches=len(times) / steps,
        )


def _covered(spans: list[tuple[float, float, str]]) -> float:
    """The length of the union of the spans."""
    total, reached = 0.0, float("-inf")
    for start, end, _ in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
