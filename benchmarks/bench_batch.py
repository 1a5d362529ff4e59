"""Does a batch survive being killed, do its engines end with it, and what does Ray cost?

    python -m benchmarks.bench_batch crash                  # 20,000 documents, tiny random model
    python -m benchmarks.bench_batch gone                   # how long engines outlive their driver
    python -m benchmarks.bench_batch overhead               # 400 documents, the embedded model
    python -m benchmarks.bench_batch crash --documents 500  # smaller

`crash` runs a batch undisturbed; then again, and kills an engine's process when a third of the
shards are committed and the driver with all that it has started when two thirds are; then resumes.
Every input must have exactly one output, the same as undisturbed.

`gone` kills the driver alone when a third of the shards are committed, and waits for its engines.

`overhead` runs the same documents through a batch with one engine per processor, and through as
many processes with one `LLM` each and nothing else, in turns, one thread each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from benchmarks.bench_stream import tiny_model
from benchmarks.harness import parser, write_results
from paged_stream import LLM, SamplingParams

LETTERS = " abcdefghijklmnopqrstuvwxyz.,"
WORDS = "the sea was calm and grey when they set out for an island that nobody had seen".split()
SHARD_BYTES = 16384  # when crashing
_CLI = "import sys; from paged_stream.cli import main; sys.exit(main(sys.argv[1:]))"


def write_documents(path: Path, prompts: Sequence[str]) -> None:
    rows = ({"id": index, "prompt": prompt} for index, prompt in enumerate(prompts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# Killing


def save_letters(folder: Path) -> None:
    """A tokenizer of one token per letter."""
    vocab = {"<unk>": 0} | {letter: index for index, letter in enumerate(LETTERS, 1)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.save_pretrained(folder)


class Run:
    """A batch in processes of its own."""

    def __init__(self, work: Path, name: str, replicas: int) -> None:
        self.output = work / name
        self._arguments = [
            *("batch", "--input", str(work / "documents.jsonl"), "--output", str(self.output)),
            *("--model", str(work / "model"), "--num-replicas", str(replicas), "--resume"),
            *("--max-tokens", "24", "--temperature", "1", "--seed", "7", "--ignore-eos"),
            *("--window-size", "252", "--dtype", "float32", "--shard-bytes", str(SHARD_BYTES)),
        ]

    def start(self) -> subprocess.Popen[bytes]:
        self.output.mkdir(exist_ok=True)
        with open(self.output.with_suffix(".log"), "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", _CLI, *self._arguments], stdout=log, stderr=log
            )

    def num_committed(self) -> int:
        return len(list(self.output.glob("shards/*")))

    def wait_for(self, count: int, process: subprocess.Popen[bytes]) -> None:
        with tqdm(total=count, unit="shard", desc=self.output.name, disable=None) as bar:
            while self.num_committed() < count and process.poll() is None:
                bar.update(self.num_committed() - bar.n)
                time.sleep(0.05)
            bar.update(self.num_committed() - bar.n)

    def finish(self, process: subprocess.Popen[bytes], num_shards: int) -> None:
        self.wait_for(num_shards, process)
        if process.wait() != 0:
            raise RuntimeError(f"the batch failed, see {self.output.with_suffix('.log')}")

    def rows(self) -> list[dict[str, Any]]:
        from pyarrow import parquet

        paths = sorted(self.output.glob("data/*.parquet"))
        return [row for path in paths for row in parquet.read_table(path).to_pylist()]


def prepare(work: Path, prompts: Sequence[str]) -> int:
    """Write a model and documents; returns the number of shards."""
    (work / "model").mkdir()
    tiny_model(work / "model")
    save_letters(work / "model")
    write_documents(work / "documents.jsonl", prompts)
    return -(-(work / "documents.jsonl").stat().st_size // SHARD_BYTES)


def gone(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds until the engines of a killed driver have ended."""
    seconds = []
    for number in range(args.repeats):
        with tempfile.TemporaryDirectory() as name:
            num_shards = prepare(Path(name), [" ".join(WORDS)] * args.documents)
            run = Run(Path(name), f"gone-{number}", args.replicas)
            driver = run.start()
            run.wait_for(num_shards // 3, driver)
            everybody = psutil.Process(driver.pid).children(recursive=True)
            engines = engines_among(everybody)
            driver.kill()
            started = time.perf_counter()
            while any(map(is_alive, engines)):
                time.sleep(0.01)
            seconds.append(time.perf_counter() - started)
            kill_all(everybody)
            driver.wait()
        print(f"{len(engines)} engines were gone after {seconds[-1]:.2f} s")
    return [{"engines": args.replicas, "seconds": seconds, "most": max(seconds)}]


def engines_among(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if "ShardWorker" in " ".join(p.cmdline())]


def is_alive(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that nobody has asked for its status yet has."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_all(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def crash(args: argparse.Namespace) -> list[dict[str, Any]]:
    generator = random.Random(0)
    prompts = [
        "".join(generator.choices(LETTERS, k=int(8 * 2 ** generator.uniform(0, 6))))
        for _ in range(args.documents)
    ]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        num_shards = prepare(work, prompts)
        undisturbed = Run(work, "undisturbed", args.replicas)
        undisturbed.finish(undisturbed.start(), num_shards)
        killed = Run(work, "killed", args.replicas)
        before = disturb(killed, num_shards)
        killed.finish(killed.start(), num_shards)
        expected, found = undisturbed.rows(), killed.rows()
    outputs = Counter(row["id"] for row in found)
    row = {
        "documents": args.documents,
        "shards": num_shards,
        "shards_before_the_driver_died": before,
        "outputs": len(found),
        "missing": args.documents - len(outputs),
        "twice": sum(count > 1 for count in outputs.values()),
        "different": sum(a != b for a, b in zip(expected, found, strict=False)),
    }
    for label, value in row.items():
        print(f"{label.replace('_', ' '):<32}{value:>10,}")
    return [row]


def disturb(run: Run, num_shards: int) -> int:
    """Kill an engine, then the driver and all that it has started; returns the shards done."""
    driver = run.start()
    run.wait_for(num_shards // 3, driver)
    everybody = psutil.Process(driver.pid).children(recursive=True)
    engines_among(everybody)[0].kill()
    run.wait_for(num_shards * 2 // 3, driver)
    everybody = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    kill_all(everybody)
    driver.wait()
    before = run.num_committed()
    if before >= num_shards:
        raise RuntimeError("the batch was over before it was killed; use more documents")
    return before


# Ray's cost

_llm: LLM | None = None  # of a process with nothing but it


def load(settings: dict[str, Any], barrier: Any) -> None:
    global _llm
    _llm = LLM(**settings)
    barrier.wait()


def generate(prompts: Sequence[str], max_tokens: int) -> float:
    """Seconds for some documents in this process."""
    assert _llm is not None
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    started = time.perf_counter()
    _llm.generate(list(prompts), params, use_tqdm=False)
    return time.perf_counter() - started


def alone(args: argparse.Namespace, prompts: Sequence[str], engine: dict[str, Any]) -> float:
    """Seconds in as many processes as there are replicas, each with its share."""
    context = multiprocessing.get_context("spawn")
    settings = {"model": args.model, "num_threads": 1, **engine}
    barrier = context.Barrier(args.replicas)
    parts = [prompts[first :: args.replicas] for first in range(args.replicas)]
    with ProcessPoolExecutor(
        args.replicas, mp_context=context, initializer=load, initargs=(settings, barrier)
    ) as pool:
        return max(pool.map(generate, parts, [args.max_tokens] * args.replicas))


def on_ray(args: argparse.Namespace, work: Path, engine: dict[str, Any]) -> float:
    """Seconds of a batch, from the first engine's readiness to the last commit."""
    from paged_stream.batch import BatchConfig, run_batch

    output = work / f"out-{time.monotonic_ns()}"
    summary = run_batch(
        BatchConfig(
            input=[str(work / "documents.jsonl")],
            output=str(output),
            model=args.model,
            sampling_params=SamplingParams(
                max_tokens=args.max_tokens, temperature=0.0, ignore_eos=True
            ),
            engine=engine,
            num_replicas=args.replicas,
            shard_bytes=8192,
        )
    )
    assert summary.num_rows == args.documents and not summary.num_bad
    return summary.done.seconds


def overhead(args: argparse.Namespace) -> list[dict[str, Any]]:
    from paged_stream.batch.batch_config import EXACT

    engine = {"window_size": 1020, "max_num_seqs": 32, "kv_cache_memory_bytes": 2 << 30, **EXACT}
    generator = random.Random(0)
    prompts = [
        " ".join(generator.choices(WORDS, k=generator.randint(10, 100)))
        for _ in range(args.documents)
    ]
    seconds: dict[str, list[float]] = {"alone": [], "ray": []}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_documents(work / "documents.jsonl", prompts)
        for _ in range(args.repeats):
            seconds["alone"].append(alone(args, prompts, engine))
            seconds["ray"].append(on_ray(args, work, engine))
    rows = []
    print(f"{'':<16}{'seconds':>10}{'docs/s/engine':>16}")
    for label, times in seconds.items():
        median = statistics.median(times)
        rate = args.documents / median / args.replicas
        print(f"{label:<16}{median:>10.1f}{rate:>16.2f}")
        rows.append({"what": label, "engines": args.replicas, "seconds": median, "rate": rate})
    share = rows[0]["seconds"] / rows[1]["seconds"]
    print(f"of the throughput without Ray: {share:.1%}")
    return [{**row, "documents": args.documents, "share": share} for row in rows]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("what", choices=["crash", "gone", "overhead"])
    arguments.add_argument("--documents", type=int, help="20,000; 2,000 for gone, 400 for overhead")
    arguments.add_argument("--replicas", type=int, default=2)
    arguments.add_argument("--model", default="smollm2-135m-instruct", help="for overhead")
    arguments.add_argument("--max-tokens", type=int, default=32, help="for overhead")
    arguments.add_argument("--repeats", type=int, default=3, help="not for crash")
    args = arguments.parse_args()
    run, documents = {"crash": (crash, 20_000), "gone": (gone, 2000), "overhead": (overhead, 400)}[
        args.what
    ]
    args.documents = args.documents or documents
    write_results(f"batch_{args.what}", run(args))


if __name__ == "__main__":
    main()
