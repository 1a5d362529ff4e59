"""How fast does decoding go, next to transformers' ``generate`` and to what the machine allows?

    python -m benchmarks.bench_decode --batch 1 16

All engines get the same prompts, weights, precision and number of threads, generate greedily and
take turns. The time of a run with one new token is taken off, which leaves the decode steps. The
floor is the time to read every weight and every visible K and V once, or to do the arithmetic,
whichever is longer, at the rates that this machine reaches in the same run.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Mapping
from functools import partial

import torch

from benchmarks.cost import attention_flops, kv_bytes_per_token, linear_flops, weight_bytes
from benchmarks.engines import PagedStream, Transformers
from benchmarks.float_folder import float_folder
from benchmarks.harness import (
    Ceilings,
    alternate,
    matrix_rate,
    parser,
    read_bandwidth,
    spread,
    write_results,
)
from paged_stream import LLMEngine

Engines = Mapping[str, PagedStream | Transformers]


def random_prompts(batch: int, length: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(1000, 40000) for _ in range(length)] for _ in range(batch)]


def load(args: argparse.Namespace) -> dict[str, PagedStream | Transformers]:
    """``ours`` once per quantisation, and transformers."""
    threads = torch.get_num_threads()
    engines: dict[str, PagedStream | Transformers] = {}
    for name in args.quantization:
        engines["ours" if name == "none" else f"ours {name}"] = PagedStream(
            args.model,
            dtype=args.dtype,
            threads=threads,
            max_num_seqs=max(args.batch),
            quantization=name,
        )
    folder = str(float_folder(args.model))
    engines["transformers"] = Transformers(folder, dtype=args.dtype, threads=threads)
    return engines


def step_floor(engine: LLMEngine, batch: int, context: float, rate: float) -> float:
    """Least seconds of a step of ``batch`` sequences that see ``context`` tokens each."""
    config = engine.model_config
    num_bytes = weight_bytes(engine) + batch * context * kv_bytes_per_token(engine)
    flops = linear_flops(config, batch, batch) + attention_flops(config, batch * context)
    bandwidth = read_bandwidth(int(num_bytes))
    return Ceilings(bandwidth=bandwidth, matrix_rate=rate).floor_seconds(num_bytes, flops)


def step_seconds(
    engines: Engines, prompts: list[list[int]], new_tokens: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of a decode step, per engine and run."""
    candidates = {
        f"{name} {count}": partial(engine.run, prompts, count)
        for name, engine in engines.items()
        for count in (1, new_tokens)
    }
    seconds = alternate(candidates, repeats=repeats)
    steps = {}
    for name in engines:
        prefill = statistics.median(seconds[f"{name} 1"])
        runs = seconds[f"{name} {new_tokens}"]
        steps[name] = [(total - prefill) / (new_tokens - 1) for total in runs]
    return steps


def bench(args: argparse.Namespace, engines: Engines, batch: int, rate: float) -> list[dict]:
    prompts = random_prompts(batch, args.prompt)
    steps = step_seconds(engines, prompts, args.new_tokens, args.repeats)
    medians = {name: statistics.median(runs) for name, runs in steps.items()}
    rows = []
    for name, engine in engines.items():
        row = {
            "engine": name,
            "model": args.model,
            "dtype": args.dtype,
            "batch": batch,
            "prompt": args.prompt,
            "new_tokens": args.new_tokens,
            "tokens_per_second": batch / medians[name],
            "spread": spread(steps[name]),
            "ratio": medians["transformers"] / medians[name],
        }
        floor = ""
        if isinstance(engine, PagedStream):
            context = args.prompt + args.new_tokens / 2
            least = step_floor(engine.engine, batch, context, rate)
            row["floor_fraction"] = least / medians[name]
            floor = f"{100 * row['floor_fraction']:.0f} %"
        print(
            f"{batch:>5}  {name:<13}{row['tokens_per_second']:>9.1f}{100 * row['spread']:>7.0f} %"
            f"{floor:>14}{row['ratio']:>9.2f}",
            flush=True,
        )
        rows.append(row)
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    arguments.add_argument(
        "--quantization",
        nargs="+",
        default=["none", "auto", "int8"],
        help="of this engine's weights: none, or what LLM(quantization=...) takes",
    )
    arguments.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    arguments.add_argument("--prompt", type=int, default=64, help="tokens")
    arguments.add_argument("--new-tokens", type=int, default=48)
    arguments.add_argument("--repeats", type=int, default=5)
    args = arguments.parse_args()
    engines, rate = load(args), matrix_rate()
    print("batch  engine           tok/s   spread  of the floor  ratio to transformers")
    rows = []
    for batch in args.batch:
        rows += bench(args, engines, batch, rate)
    write_results("decode", rows)


if __name__ == "__main__":
    main()
