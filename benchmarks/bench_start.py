"""What do loading a model and one short answer take, in memory and time?

    python -m benchmarks.bench_start

Each run is a fresh process that imports torch, makes an `LLM`, and answers. Memory is what is
resident over what importing torch takes; time is that of each stage. A model that is to be
converted first is converted before the first run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from benchmarks.harness import parser, spread, write_results
from paged_stream.models.formats.resolve import resolve_model

MODEL = "smollm2-135m-instruct"
# The harness imports more than torch, so the process that is measured does without it.
CHILD = """
import json, os, resource, sys, time

def stage(name, start):
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    print(json.dumps([name, resident, time.perf_counter() - start]))

start = time.perf_counter()
import torch
stage("torch", start)
start = time.perf_counter()
from paged_stream import LLM, SamplingParams
stage("import", start)
start = time.perf_counter()
llm = LLM(sys.argv[1])
stage("load", start)
start = time.perf_counter()
llm.generate("The capital of France is", SamplingParams(max_tokens=16), use_tqdm=False)
stage("answer", start)
stats = llm.stats()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
print(json.dumps([peak, stats.kv_reserved_bytes, stats.kv_resident_bytes]))
"""


def run(model: str) -> dict[str, float]:
    """Run once; bytes over what torch takes and seconds, by stage."""
    command = [sys.executable, "-c", CHILD, model]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    *stages, (peak, reserved, resident) = map(json.loads, lines)
    base = stages[0][1]
    row = {f"{name}_seconds": seconds for name, _, seconds in stages}
    row |= {f"{name}_bytes": num_bytes - base for name, num_bytes, _ in stages[1:]}
    return row | {
        "torch_bytes": base,
        "peak_bytes": peak - base,
        "kv_reserved_bytes": reserved,
        "kv_resident_bytes": resident,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default=MODEL)
    arguments.add_argument("--repeats", type=int, default=5)
    args = arguments.parse_args()
    resolve_model(args.model)
    runs = [run(args.model) for _ in range(args.repeats)]
    row = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    row["load_spread"] = spread([run["load_seconds"] for run in runs])
    print(f"importing torch: {row['torch_bytes'] / 2**20:.0f} MiB, {row['torch_seconds']:.2f} s")
    print(f"importing paged_stream: {row['import_seconds']:.2f} s")
    print(f"LLM(): {row['load_seconds']:.2f} s; one answer: {row['answer_seconds']:.2f} s")
    print(
        f"over torch: {row['load_bytes'] / 2**20:.0f} MiB when loaded, "
        f"{row['answer_bytes'] / 2**20:.0f} MiB after the answer, "
        f"{row['peak_bytes'] / 2**20:.0f} MiB at most"
    )
    print(
        f"of the KV cache, {row['kv_resident_bytes'] / 2**20:.0f} of "
        f"{row['kv_reserved_bytes'] / 2**20:,.0f} MiB are resident"
    )
    write_results("start", [{"model": args.model, **row}])


if __name__ == "__main__":
    main()
