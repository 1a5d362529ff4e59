"""The attention kernels under Nsight Compute, where it is: what the device's own counters say.

Run as a program, this is what the tool looks at.
"""

from __future__ import annotations

import csv
import shutil
import sys
from functools import partial

import torch

from benchmarks.gpu.attention import Streams
from benchmarks.gpu.processes import LATE, capture
from benchmarks.gpu.sections import SIZES, Case, Section
from paged_stream.attention.native import NativeBackend

_METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory throughput, of its peak",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "arithmetic throughput, of its peak",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps that are there, of the most",
    "launch__registers_per_thread": "registers of a thread",
    "launch__shared_mem_per_block_dynamic": "shared memory of a block",
}


def ncu_cases(section: Section) -> list[Case]:
    return [
        Case(kind, partial(_look, kind=kind, size=size))
        for kind, size in (("decode", section.sizes.streams[1]), ("prefill", 1))
    ]


def _look(section: Section, *, kind: str, size: int) -> None:
    tool = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if tool is None:
        section.skip(f"ncu, {kind}", "it is not installed")
        return
    name = next(name for name, sizes in SIZES.items() if sizes == section.sizes)
    # Clocks are left as they are: the device may be another's, too.
    command = [tool, "--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base"]
    command += ["--kernel-name", "regex:attend|merge", "--launch-skip", "3", "--launch-count", "12"]
    command += ["--metrics", ",".join(_METRICS)]
    command += [sys.executable, "-m", "benchmarks.gpu.ncu", kind, name, str(size)]
    seconds = section.seconds_left() / 2
    code, output = capture(command, seconds)
    with (section.folder / "ncu.txt").open("a") as file:
        file.write(f"{kind}\n{output}\n")
    if code == LATE:
        section.skip(f"ncu, {kind}", f"it was not done after {seconds:.0f} s")
        return
    lines = [line for line in output.splitlines() if line.startswith('"')]
    if code != 0 or len(lines) < 3:
        section.skip(f"ncu, {kind}", f"it cannot run here: {output.strip()[-300:]}")
        return
    names, units, *rows = csv.reader(lines)
    for index, row in enumerate(rows):
        fields = dict(zip(names, zip(row, units, strict=True), strict=True))
        _record(section, f"ncu, {kind}, {index}", fields)


def _record(section: Section, label: str, row: dict[str, tuple[str, str]]) -> None:
    kernel = row.get("Kernel Name", ("a kernel", ""))[0]
    for metric, meaning in _METRICS.items():
        text, unit = row.get(metric, ("", ""))
        name = f"{label} {kernel[:60]}: {meaning}"
        try:
            section.record(name, value=float(text.replace(",", "")), unit=unit)
        except ValueError:
            section.skip(name, f"the tool says {text!r}")


def main() -> int:
    kind, sizes, count = sys.argv[1], SIZES[sys.argv[2]], int(sys.argv[3])
    chunk = min(4096, sizes.prompt) if kind == "prefill" else 1
    visible = chunk if kind == "prefill" else sizes.visible
    device, backend = torch.device("cuda"), NativeBackend()
    for heads in sizes.heads:
        streams = Streams(device, heads, sizes.head_dim, count, visible, chunk=chunk)
        for _ in range(3):
            streams.run(backend)
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
