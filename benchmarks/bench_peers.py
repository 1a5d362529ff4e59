"""How fast is this engine next to transformers, vLLM and llama.cpp, on the same model?

    python -m benchmarks.bench_peers --vllm-python ~/v/bin/python --llama-python ~/l/bin/python

Each engine is loaded in a process of its own, this one too, with the same number of threads, and
stays loaded. Runs take turns, and the processes of the others are stopped meanwhile, because some
spin while they wait. Prompts are the same, and all
generate greedily. Prefill is a run with one new token; for decoding, such a run is taken off a
longer one, or, next to llama.cpp, what comes before the first token. transformers and vLLM's CPU
build run the same bfloat16 weights; llama.cpp runs the GGUF file that these were converted from. A
peer that the given interpreter cannot import is skipped, and its last results stay.

Full windows are decoded from prompts that were computed before: in streams here, which let go of a
token for each new one, in the prefix cache of vLLM, which keeps all and so sees 24 tokens more on
average. Their floor is every weight and visible K and V read once, at the bandwidth of the same
run, or the arithmetic, whichever takes longer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_decode import random_prompts, step_floor
from benchmarks.engines import ENGINES
from benchmarks.float_folder import float_folder
from benchmarks.harness import matrix_rate, parser, spread, write_results
from paged_stream import EngineConfig, LLMEngine
from paged_stream.models.formats.resolve import embedded_gguf
from paged_stream.setting_kinds import KvCacheDtype

ROOT = Path(__file__).parent.parent
SETTLE_SECONDS = 0.3  # until a process that was stopped runs as before
PREFILL = 1  # new tokens of a run that measures prefill
MODEL = "smollm2-135m-instruct"
CACHES: dict[str, KvCacheDtype] = {"bfloat16": "auto", "K and V in int8": "int8"}
FILES = {"peer_transformers": "transformers", "peer_vllm": "vLLM", "peer_llama_cpp": "llama.cpp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """``batch`` prompts of ``prompt`` tokens, each going on for ``new_tokens``."""

    kind: str
    batch: int
    prompt: int
    new_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens in what is timed: one decode step, or the prompts."""
        return self.batch * (self.prompt if self.new_tokens == PREFILL else 1)


class Worker:
    """An engine in another process, see `benchmarks.engines`.

    Args:
        folder: the checkout whose engine and benchmarks it imports.

    Raises:
        RuntimeError: it ended; the message has what it printed last.
    """

    def __init__(
        self, name: str, python: str, settings: dict[str, Any], folder: Path = ROOT
    ) -> None:
        self.name = name
        self.tells_first_token = ENGINES[name].tells_first_token
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.engines", name, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": str(settings["threads"]), "HF_HUB_OFFLINE": "1"},
        )
        self.version: str = self._answer()["version"]
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        """To the worker and whatever it has started."""
        with suppress(ProcessLookupError):  # it has ended, which its pipe tells
            os.killpg(self._process.pid, number)

    def run(self, prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
        """Returns the seconds that the engine took, without the way here and back."""
        self._signal(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        command = json.dumps({"prompts": prompts, "new_tokens": new_tokens})
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._log.seek(0)
        raise RuntimeError(f"{self.name} ended:\n{self._log.read()[-3000:]}")


def can_import(python: str, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        found = subprocess.run([python, "-c", code]).returncode == 0
    except OSError as error:
        raise SystemExit(f"{python} is no Python interpreter: {error}") from None
    if not found:
        print(f"{module}: skipped, {python} cannot import it")
    return found


def measure(workers: dict[str, Worker], task: Task, *, repeats: int) -> dict[str, list[float]]:
    """Seconds of a decode step, or of the whole prompt, per engine and run."""
    prompts = random_prompts(task.batch, task.prompt)
    # A long prompt's time is too uncertain to be taken off that of a few steps.
    in_one_run = all(worker.tells_first_token for worker in workers.values())
    counts = {task.new_tokens} if in_one_run else {PREFILL, task.new_tokens}
    answers: dict[tuple[str, int], list[dict[str, float]]] = {
        (name, count): [] for name in workers for count in counts
    }
    for run in range(1 + repeats):
        for (name, count), of_runs in answers.items():
            answer = workers[name].run(prompts, count)
            if run > 0:  # the first run warms up
                of_runs.append(answer)
    seconds = {}
    for name in workers:
        runs = [answer["seconds"] for answer in answers[name, task.new_tokens]]
        if task.new_tokens != PREFILL:
            if in_one_run:
                before = [a["first_token_seconds"] for a in answers[name, task.new_tokens]]
            else:
                prefill = [answer["seconds"] for answer in answers[name, PREFILL]]
                before = [statistics.median(prefill)] * repeats
            steps = task.new_tokens - 1
            runs = [(total - first) / steps for total, first in zip(runs, before, strict=True)]
        seconds[name] = runs
    return seconds


def bench(workers: dict[str, Worker], tasks: list[Task], repeats: int) -> list[dict]:
    """One row per task, kind of this engine and peer."""
    kinds = [name for name, worker in workers.items() if worker.name.startswith("paged_stream")]
    peers = [name for name in workers if name not in kinds]
    rows = []
    for task in tasks:
        seconds = measure(workers, task, repeats=repeats)
        medians = {name: statistics.median(runs) for name, runs in seconds.items()}
        for ours, peer in itertools.product(kinds, peers):
            row: dict[str, Any] = {
                "peer": peer,
                "version": workers[peer].version,
                "ours": ours,
                "task": task.kind,
                "batch": task.batch,
                "prompt": task.prompt,
                "tokens_per_second": task.num_tokens / medians[ours],
                "spread": spread(seconds[ours]),
                "peer_tokens_per_second": task.num_tokens / medians[peer],
                "peer_spread": spread(seconds[peer]),
                "ratio": medians[peer] / medians[ours],
            }
            print(
                f"{task.kind:<12}{task.batch:>5}{task.prompt:>7}  {ours:<24}"
                f"{row['tokens_per_second']:>9.1f}{100 * row['spread']:>6.0f} %"
                f"  {peer:<34}{row['peer_tokens_per_second']:>8.1f}"
                f"{100 * row['peer_spread']:>6.0f} %{row['ratio']:>8.2f}",
                flush=True,
            )
            rows.append(row)
    return rows


def start(stack: ExitStack, name: str, python: str, settings: dict[str, Any]) -> Worker:
    worker = Worker(name, python, settings)
    stack.callback(worker.close)
    return worker


def same_weights(args: argparse.Namespace, settings: dict[str, Any]) -> list[dict]:
    """transformers and vLLM, on the folder of bfloat16 weights."""
    settings = settings | {"dtype": "bfloat16"}
    tasks = [Task(kind="decode", batch=n, prompt=64, new_tokens=48) for n in args.batch]
    tasks += [Task(kind="prefill", batch=1, prompt=n, new_tokens=PREFILL) for n in args.prompt]
    with ExitStack() as stack:
        settings = settings | {"model": str(float_folder(MODEL))}
        workers = {"bfloat16": start(stack, "paged_stream", sys.executable, settings)}
        workers["transformers"] = start(stack, "transformers", sys.executable, settings)
        if can_import(args.vllm_python, "vllm"):
            workers["vLLM"] = start(stack, "vllm", args.vllm_python, settings)
        return bench(workers, tasks, args.repeats)


def full_windows(args: argparse.Namespace, settings: dict[str, Any]) -> list[dict]:
    """Streams whose windows are full, with K and V in bfloat16 and in int8, and vLLM."""
    cases = [map(int, case.split("x")) for case in args.full]
    tasks = [
        Task(kind="full window", batch=batch, prompt=visible, new_tokens=48)
        for batch, visible in cases
    ]
    if not tasks:
        return []
    settings = settings | {
        "model": str(float_folder(MODEL)),
        "dtype": "bfloat16",
        "max_num_seqs": max(task.batch for task in tasks),
        "max_model_len": max(task.prompt for task in tasks) + 64,
        "keep_prompts": True,
    }
    if not can_import(args.vllm_python, "vllm"):
        return []
    with ExitStack() as stack:
        workers = {
            name: start(
                stack, "paged_stream_streams", sys.executable, settings | {"kv_cache_dtype": cache}
            )
            for name, cache in CACHES.items()
        }
        workers["vLLM"] = start(stack, "vllm", args.vllm_python, settings)
        rows = bench(workers, tasks, args.repeats)
    rate = matrix_rate()
    for name, cache in CACHES.items():
        config = EngineConfig(model=settings["model"], dtype="bfloat16", kv_cache_dtype=cache)
        with LLMEngine(config) as engine:
            for row in (row for row in rows if row["ours"] == name):
                least = step_floor(engine, row["batch"], row["prompt"], rate)
                row["floor_fraction"] = least * row["tokens_per_second"] / row["batch"]
                print(f"{name}, {row['batch']} x {row['prompt']}: {row['floor_fraction']:.2f}")
    return rows


def same_file(args: argparse.Namespace, settings: dict[str, Any]) -> list[dict]:
    """llama.cpp on the GGUF file, with and without its flash attention."""
    if not can_import(args.llama_python, "llama_cpp"):
        return []
    settings = settings | {"dtype": "bfloat16", "max_num_seqs": 1}
    file = args.gguf or embedded_gguf()
    ours = settings | {"model": str(file), "quantization": args.quantization}
    theirs = settings | {"model": str(file)}
    tasks = [Task(kind="decode", batch=1, prompt=n, new_tokens=48) for n in (64, 2048)]
    tasks += [Task(kind="prefill", batch=1, prompt=n, new_tokens=PREFILL) for n in args.prompt]
    with ExitStack() as stack:
        name = "bfloat16" if args.quantization == "none" else args.quantization
        workers = {name: start(stack, "paged_stream", sys.executable, ours)}
        kind = "Q4_1" if args.gguf is None else file.stem
        for label, flash_attn in ((kind, False), (f"{kind}, flash attention", True)):
            workers[f"llama.cpp, {label}"] = start(
                stack, "llama_cpp", args.llama_python, theirs | {"flash_attn": flash_attn}
            )
        return bench(workers, tasks, args.repeats)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--vllm-python", default=sys.executable, metavar="PATH")
    arguments.add_argument("--llama-python", default=sys.executable, metavar="PATH")
    arguments.add_argument(
        "--quantization",
        default="auto",
        help="of this engine's weights next to llama.cpp: none, or as LLM(quantization=...)",
    )
    arguments.add_argument(
        "--gguf", type=Path, metavar="FILE", help="compare with llama.cpp alone, on this file"
    )
    arguments.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    arguments.add_argument("--prompt", type=int, nargs="+", default=[512, 2048], help="to prefill")
    arguments.add_argument(
        "--full",
        nargs="*",
        default=["1x4096", "16x1024", "16x4096", "64x1024"],
        metavar="STREAMSxVISIBLE",
        help="streams with full windows, and how many tokens each sees",
    )
    arguments.add_argument("--repeats", type=int, default=3)
    args = arguments.parse_args()
    settings = {
        "threads": torch.get_num_threads(),
        "max_num_seqs": max(args.batch),
        "max_model_len": 4096,
    }
    print(f"task        batch prompt  {'this engine':<24}    tok/s  spread", end="")
    print(f"  {'peer':<34}   tok/s  spread   ratio")
    rows = same_file(args, settings)
    if args.gguf is not None:  # what the documentation shows is of another model
        write_results(f"peer_{args.gguf.stem}", rows)
        return
    rows = same_weights(args, settings) + full_windows(args, settings) + rows
    for name, prefix in FILES.items():
        if of_peer := [row for row in rows if row["peer"].startswith(prefix)]:
            write_results(name, of_peer)


if __name__ == "__main__":
    main()
