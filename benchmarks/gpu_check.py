"""Is everything right on this CUDA device, and how near to its limits?

    python -m benchmarks.gpu_check                        # build, verify, measure: under 8 minutes
    python -m benchmarks.gpu_check --quick --sections build ops engine
    OUT=/some/folder python -m benchmarks.gpu_check       # results there, not in results/gpu

Needs a CUDA compiler, no network and no model. Sections run one after the other, each in a process
of its own with a limit of time: what one of them breaks, the others do not see. All that is found
goes to gpu_check.jsonl, line by line, and to gpu_check.png where matplotlib is. The exit
code is that of a failure if anything did not hold.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Seconds that each section may take.
SECTIONS = {
    "build": 170,
    "ceilings": 20,
    "ops": 70,
    "engine": 100,
    "attention": 45,
    "steps": 150,
    "sanitizer": 90,
}
# What each of them, but the first, consists of: functions in `benchmarks.gpu`.
WORKS = {
    "ceilings": ["timing.check_ceilings"],
    "ops": [
        "cache_checks.check_elementwise",
        "cache_checks.check_rotary_table",
        "cache_checks.check_rotary_and_cache",
        "cache_checks.check_moves",
        "op_checks.check_attention",
        "sampling_checks.check_sampling",
        "sampling_checks.check_advance",
    ],
    "engine": ["engine_checks.check_engine"],
    "attention": ["attention.measure_attention"],
    "steps": ["steps.measure_shapes"],
    "sanitizer": ["sanitizer.check_with_sanitizer"],
}
TOTAL_SECONDS = 470


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--device", default="cuda", help="cpu goes through everything in miniature")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--only", choices=SECTIONS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    folder = args.out or Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results" / "gpu")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "gpu_check.jsonl"
    if args.only:
        return run_section(args, path)
    path.write_text("")
    began, failed = time.monotonic(), []
    for name in args.sections:
        left = TOTAL_SECONDS - (time.monotonic() - began)
        print(f"\n{name}", flush=True)
        if left < 10:
            print("  skipped: no time is left", flush=True)
            failed.append(name)
            continue
        start = time.monotonic()
        if not start_section(args, name, folder, min(SECTIONS[name], left)):
            failed.append(name)
            if name == "build":
                break
        print(f"  ({time.monotonic() - start:.0f} s)", flush=True)
    from benchmarks.gpu.sections import read_rows, tables

    rows = read_rows(path)
    print("\n" + "\n".join(tables(rows)))
    if importlib.util.find_spec("matplotlib") is not None:
        from benchmarks.plots import plot_gpu

        plot_gpu(rows, folder)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall sections hold")
    return 1 if failed else 0


def start_section(args: argparse.Namespace, name: str, folder: Path, seconds: float) -> bool:
    """Run one section in a process of its own; whether all of it held."""
    if name == "build":
        return build(args.device, seconds)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--only", name]
    command += ["--device", args.device, "--out", str(folder)] + ["--quick"] * args.quick
    try:
        return subprocess.run(command, cwd=ROOT, timeout=seconds + 15).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"  FAILED: ended after {seconds + 15:.0f} s", flush=True)
        return False


def build(device: str, seconds: float) -> bool:
    """Compile the op library in place, and see that it has kernels for the device."""
    if device != "cpu":
        environment = {"TORCH_CUDA_ARCH_LIST": _architectures(), "MAX_JOBS": str(os.cpu_count())}
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment | dict(os.environ),
                timeout=seconds,
                capture_output=True,
                text=True,
            )
        except subprocess.TimeoutExpired:
            print(f"  FAILED: not built after {seconds:.0f} s", flush=True)
            return False
        if done.returncode != 0:
            print((done.stdout + done.stderr)[-8000:], flush=True)
            return False
    check = "from paged_stream import ops; print(ops.has_cuda(), ops.cpu_isa())"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    print(
        f"  kernels for CUDA, for the processor: {done.stdout.strip() or done.stderr}", flush=True
    )
    return done.returncode == 0 and (device == "cpu" or done.stdout.startswith("True"))


def _architectures() -> str:
    """What to compile for: the device that is there. Hopper's own instructions need the a."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}{'a' * (major >= 9)}"


def run_section(args: argparse.Namespace, path: Path) -> int:
    import torch

    from benchmarks.gpu.sections import FULL, QUICK, TINY, Section

    torch.manual_seed(0)
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    sizes = TINY if device.type == "cpu" else QUICK if args.quick else FULL
    section = Section(args.only, device, sizes, SECTIONS[args.only], path)
    for name in WORKS[args.only]:
        module, function = name.split(".")
        work = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
        section.attempt(name, work, section)
    return 1 if section.num_failures else 0


if __name__ == "__main__":
    sys.exit(main())
