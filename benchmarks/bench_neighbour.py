"""How fast does decoding go beside another process that takes all the processor it gets?

    python -m benchmarks.bench_neighbour --batch 1 8
    python -m benchmarks.bench_neighbour --other ~/before  # next to another checkout's build

The engine runs in a process of its own. Idle and busy runs take turns; the neighbour, which counts
in a loop, is stopped during the idle ones. A neighbour is due an equal share of the processors: of
two, one thread beside it would keep one, which is half of what two threads have on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench_decode import random_prompts
from benchmarks.bench_peers import ROOT, Worker
from benchmarks.harness import parser, spread, write_results


class Neighbour:
    """Processes that are busy, each for one processor, when they are told to."""

    def __init__(self, count: int) -> None:
        busy = [sys.executable, "-c", "while True: pass"]
        self._processes = [subprocess.Popen(busy) for _ in range(count)]
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)

    @contextmanager
    def busy(self) -> Iterator[None]:
        self._signal(signal.SIGCONT)
        yield
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self._signal(signal.SIGKILL)


def start(args: argparse.Namespace, stack: ExitStack, folder: Path) -> Worker:
    settings = {
        "model": args.model,
        "dtype": args.dtype,
        "quantization": args.quantization,
        "threads": args.threads,
        "max_num_seqs": max(args.batch),
    }
    python = sys.executable if folder == ROOT else str(folder / ".venv" / "bin" / "python")
    worker = Worker("paged_stream", python, settings, folder)
    stack.callback(worker.close)
    return worker


def decode_rate(worker: Worker, batch: int, prompt: int, new_tokens: int) -> float:
    """Tokens per second behind the first ones."""
    answer = worker.run(random_prompts(batch, prompt), new_tokens)
    return batch * (new_tokens - 1) / (answer["seconds"] - answer["first_token_seconds"])


def bench(
    args: argparse.Namespace, workers: dict[str, Worker], neighbour: Neighbour, batch: int
) -> list[dict[str, Any]]:
    idle: dict[str, list[float]] = {build: [] for build in workers}
    busy: dict[str, list[float]] = {build: [] for build in workers}
    for run in range(1 + args.repeats):
        for build, worker in workers.items():
            alone = decode_rate(worker, batch, args.prompt, args.new_tokens)
            with neighbour.busy():
                beside = decode_rate(worker, batch, args.prompt, args.new_tokens)
            if run > 0:  # the first run warms up
                idle[build].append(alone)
                busy[build].append(beside)
    rows = []
    for build in workers:
        alone, beside = statistics.median(idle[build]), statistics.median(busy[build])
        rows.append(
            {
                "build": build,
                "model": args.model,
                "dtype": args.dtype,
                "quantization": args.quantization,
                "threads": args.threads,
                "neighbours": args.neighbours,
                "batch": batch,
                "new_tokens": args.new_tokens,
                "idle_tokens_per_second": alone,
                "idle_spread": spread(idle[build]),
                "busy_tokens_per_second": beside,
                "busy_spread": spread(busy[build]),
                "ratio": beside / alone,
            }
        )
        print(
            f"{build:<8}{batch:>5}{alone:>9.1f}{100 * spread(idle[build]):>6.0f} %"
            f"{beside:>9.1f}{100 * spread(busy[build]):>6.0f} %{beside / alone:>8.2f}",
            flush=True,
        )
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    arguments.add_argument(
        "--quantization", default="none", help="none, or what LLM(quantization=...) takes"
    )
    arguments.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument("--neighbours", type=int, default=1, help="busy processes")
    arguments.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    arguments.add_argument("--prompt", type=int, default=64, help="tokens")
    arguments.add_argument("--new-tokens", type=int, default=128)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument(
        "--other", type=Path, metavar="FOLDER", help="another checkout, with its .venv and build"
    )
    args = arguments.parse_args()
    print("build   batch     idle           busy           ratio")
    rows = []
    with ExitStack() as stack:
        workers = {"this": start(args, stack, ROOT)}
        if args.other is not None:
            workers["other"] = start(args, stack, args.other.resolve())
        neighbour = Neighbour(args.neighbours)
        stack.callback(neighbour.close)
        for batch in args.batch:
            rows += bench(args, workers, neighbour, batch)
    write_results("neighbour", rows)


if __name__ == "__main__":
    main()
