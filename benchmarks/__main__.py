"""Runs benchmarks one after the other and writes the README's figures: what ``make bench`` does.

    python -m benchmarks                    # all of them: on two cores, about 40 minutes
    python -m benchmarks decode prefill     # only these
    python -m benchmarks --vllm-python ~/v/bin/python --llama-python ~/l/bin/python

Each runs in a process of its own, and one that fails does not stop the others. What measures
perplexity, and what needs Ray, is run only by name.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.harness import parser

MODULES = {
    "linear": "bench_linear",
    "attention": "bench_attention",
    "adapters": "bench_adapters",
    "decode": "bench_decode",
    "prefill": "bench_prefill",
    "recompute": "bench_recompute",
    "peers": "bench_peers",
    "overhead": "bench_overhead",
    "start": "bench_start",
    "neighbour": "bench_neighbour",
    "stream": "bench_stream",
    "turns": "bench_turns",
    "open_streams": "bench_open_streams",
    "async": "bench_async",
    "serve": "bench_serve",
    "sink_effect": "sink_effect",
    "quantized_perplexity": "quantized_perplexity",
    "batch_crash": "bench_batch",
    "batch_overhead": "bench_batch",
    "pool": "bench_pool",
    "disconnects": "disconnects",
    "interrupts": "interrupts",
    "structured": "structured",
}
BY_NAME_ONLY = (
    "serve",
    "sink_effect",
    "quantized_perplexity",
    "batch_crash",
    "batch_overhead",
    "pool",
    "disconnects",
    "interrupts",
    "structured",
)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODULES))
    arguments.add_argument("--vllm-python", default=sys.executable, metavar="PATH")
    arguments.add_argument("--llama-python", default=sys.executable, metavar="PATH")
    args = arguments.parse_args()
    for name in args.names:
        if name not in MODULES:
            arguments.error(f"no benchmark {name!r}; there are {', '.join(MODULES)}")
    options = {
        "peers": ["--vllm-python", args.vllm_python, "--llama-python", args.llama_python],
        "batch_crash": ["crash"],
        "batch_overhead": ["overhead"],
        "quantized_perplexity": "--kv-cache-dtype int8 --quantization int8 int4 auto".split(),
    }
    failed = []
    for name in args.names or [name for name in MODULES if name not in BY_NAME_ONLY]:
        print(f"\n{MODULES[name]}", flush=True)
        start = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{MODULES[name]}", *options.get(name, ())]
        if subprocess.run(command).returncode != 0:
            failed.append(name)
        print(f"({time.monotonic() - start:.0f} s)", flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.report"], check=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
