"""Is everything right on this CUDA device, and how near to its limits?

    benchmarks/first_gpu.sh first                  # what matters most, in 450 seconds
    benchmarks/first_gpu.sh second                 # the rest, in 280
    python -m benchmarks.gpu_check                 # both
    python -m benchmarks.gpu_check --sizes quick --sections ops engine

Needs no network and no model, and a CUDA compiler only if there is no op library for the device.
Sections run one after the other, in processes of their own with limits of time. What breaks a
process does not keep the rest of its section from running in another one. Every row that is found
goes to gpu_check.jsonl at once, and at the end to gpu_check.png where matplotlib is. Results are in
$OUT, or else in benchmarks/results/gpu. Exit codes: 0 if all holds, 1 if something does not, 2 if
all that ran does, but something was left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.extension import prepare_extension
from benchmarks.gpu.place import RESTART, Place
from benchmarks.gpu.plan import CALLS, SECTIONS
from benchmarks.gpu.processes import LATE, ROOT, watch
from benchmarks.gpu.rows import (
    NAME,
    Row,
    exit_code,
    line_of,
    plan_row,
    read_rows,
    tables,
    write_row,
)

GRACE_SECONDS = 5  # for a section that is over its time to come to an end by itself


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--call", choices=CALLS, default="all", help="which sections, how long")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="only these of the call's")
    parser.add_argument("--sizes", choices=("full", "quick", "tiny"), default="full")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="how many times as long all may take"
    )
    parser.add_argument("--only", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--goes-on", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.out = args.out or Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results" / "gpu")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only:
        return run_section(args)
    path = args.out / NAME
    path.write_text("")
    Place.forget(args.out)
    call = CALLS[args.call]
    sections = [name for name in call.sections if not args.sections or name in args.sections]
    for name in sections:
        write_row(path, plan_row(name, None))
    ends = time.monotonic() + call.seconds * args.patience
    was_built = prepare_extension(path, ends, args.patience)
    if was_built is not None:
        for name in sections:
            if was_built and name in call.left_out:
                continue
            supervise(args, name, ends)
    return conclude(args.out)


def supervise(args: argparse.Namespace, name: str, ends: float) -> None:
    """Run one section in processes of its own until it has come to its end, or its time has."""
    began = time.monotonic()
    ends = min(ends, began + SECTIONS[name].seconds * args.patience)
    print(f"\n{name}", flush=True)
    place: Place | None = None
    while (left := ends - time.monotonic()) > 2 * GRACE_SECONDS:
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--only", name]
        command += ["--out", str(args.out), "--sizes", args.sizes]
        command += ["--seconds", str(left - GRACE_SECONDS)]
        code = watch(command + ["--goes-on"] * (place is not None), left)
        if code == 0:
            break
        reached = Place.read(args.out, name)
        if code != RESTART:
            record_end(args.out, name, code, reached)
        if code == LATE or reached is None or reached == place:
            break
        place = reached
    Place.forget(args.out)
    print(f"  ({time.monotonic() - began:.0f} s)", flush=True)


def record_end(folder: Path, name: str, code: int, place: Place | None) -> None:
    """Record that a section's process ended before its time."""
    how = "did not end in time" if code == LATE else f"ended its process with exit code {code}"
    row: Row = {"section": name, "case": None, "name": name, "ok": False, "error": how}
    if place is not None:
        row |= {"case": place.case_name, "name": place.name}
    write_row(folder / NAME, row)
    print(line_of(row), flush=True)


def run_section(args: argparse.Namespace) -> int:
    """Run one section, or what another process has left of it, in this process."""
    import torch

    from benchmarks.gpu.sections import SIZES, Case, Section

    torch.manual_seed(0)
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    place = Place.read(args.out, args.only) if args.goes_on else None
    section = Section(args.only, device, SIZES[args.sizes], args.seconds, args.out, place)
    cases: list[Case] = []
    for name in SECTIONS[args.only].cases:
        module, function = name.split(".")
        cases += getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(section)
    section.run(cases)
    return 0


def conclude(folder: Path) -> int:
    """Print what was found, last what is not as it should be; the exit code."""
    rows = read_rows(folder / NAME)
    print("\n" + "\n".join(tables(rows)))
    if importlib.util.find_spec("matplotlib") is not None:
        try:
            from benchmarks.plots import plot_gpu

            plot_gpu(rows, folder)
        except Exception:  # the figures are what counts, and they are written
            traceback.print_exc()
    wrong = [row for row in rows if row.get("ok") is False or "skipped" in row]
    print("\nnot as it should be:" if wrong else "\nall holds")
    for row in wrong:
        print(line_of(row))
    return exit_code(rows)


if __name__ == "__main__":
    sys.exit(main())
