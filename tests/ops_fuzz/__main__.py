"""Fuzzes the ops at length: ``python -m tests.ops_fuzz --cases 1000000``.

A process makes the cases of some seeds. If it ends early, the same seeds are made again with a log,
and the last call and what was found are printed; the run goes on with the next seeds.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

from tests.ops_fuzz.sanitized import build_library, run_fuzzer

SEEDS_PER_PROCESS, EXAMPLES, CALLS = 5, 200, 10


def run_seeds(library: Path, first: int) -> tuple[int, bool]:
    """Make the cases of one process. Prints what went wrong.

    Returns:
        How many calls it made, and whether it ended well.
    """
    options = ["--seeds", str(first), str(first + SEEDS_PER_PROCESS)]
    options += ["--examples", str(EXAMPLES), "--calls", str(CALLS)]
    result = run_fuzzer(library, *options)
    if result.returncode:
        print(f"seeds from {first}: code {result.returncode}\n{result.stderr[-6000:]}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "call")
            run_fuzzer(library, *options, "--log", str(log))
            print(f"the last call: {log.read_text()}", flush=True)
    counts = re.findall(r"(\d+) calls, ", result.stdout)
    return int(counts[-1]) if counts else 0, result.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the ops under sanitizers.")
    parser.add_argument("--cases", type=int, default=1_000_000, help="calls to make at least")
    parser.add_argument("--first-seed", type=int, default=0, help="go on from here")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no process after these")
    options = parser.parse_args()
    library = build_library()
    end = time.monotonic() + 60 * options.minutes
    cases, failures, seed = 0, 0, options.first_seed
    while cases < options.cases and time.monotonic() < end:
        made, is_well = run_seeds(library, seed)
        seed += SEEDS_PER_PROCESS
        failures += not is_well
        cases += made
        print(f"{cases} cases, {failures} failures, next seed {seed}", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
