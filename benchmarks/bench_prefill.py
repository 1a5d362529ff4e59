"""How fast is a prompt computed, next to transformers' forward pass and to the matrix rate?

    python -m benchmarks.bench_prefill --prompt 128 2048

Both compute one prompt from nothing up to its first new token, at the engine's default chunk size,
with logits for the last position only; they take turns. The floor is the arithmetic at the rate of
the fastest large matrix product on this machine, or the reading of the weights if that is longer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.bench_decode import random_prompts
from benchmarks.cost import attention_flops, linear_flops, weight_bytes
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


def prefill_flops(engine: LLMEngine, length: int) -> float:
    visible = sum(engine.sink_window.num_visible(position) for position in range(length))
    config = engine.model_config
    return linear_flops(config, length, 1) + attention_flops(config, visible)


@torch.inference_mode()
def forward(model: Transformers, prompt: list[int]) -> None:
    """What transformers' ``generate`` does first, without what it does around that."""
    model.model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)


def bench(
    args: argparse.Namespace, ours: PagedStream, theirs: Transformers, ceilings: Ceilings
) -> list[dict]:
    engine, rows = ours.engine, []
    for length in args.prompt:
        (prompt,) = random_prompts(1, length)
        candidates: dict[str, Callable[[], Any]] = {
            "ours": partial(ours.run, [prompt], 1),
            "transformers": partial(forward, theirs, prompt),
        }
        seconds = alternate(candidates, repeats=args.repeats)
        medians = {name: statistics.median(runs) for name, runs in seconds.items()}
        least = ceilings.floor_seconds(weight_bytes(engine), prefill_flops(engine, length))
        row = {
            "model": args.model,
            "dtype": args.dtype,
            "quantization": args.quantization,
            "prompt": length,
            "tokens_per_second": length / medians["ours"],
            "spread": spread(seconds["ours"]),
            "floor_fraction": least / medians["ours"],
            "transformers_tokens_per_second": length / medians["transformers"],
            "transformers_spread": spread(seconds["transformers"]),
            "ratio": medians["transformers"] / medians["ours"],
            "matrix_rate": ceilings.matrix_rate,
        }
        print(
            f"{length:>6}{row['tokens_per_second']:>11.0f}{100 * row['spread']:>7.0f} %"
            f"{100 * row['floor_fraction']:>12.0f} %{row['transformers_tokens_per_second']:>14.0f}"
            f"{row['ratio']:>8.2f}",
            flush=True,
        )
        rows.append(row)
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    arguments.add_argument("--quantization", default="none", help="of this engine's weights")
    arguments.add_argument("--prompt", type=int, nargs="+", default=[128, 512, 2048, 8192])
    arguments.add_argument("--repeats", type=int, default=5)
    args = arguments.parse_args()
    threads = torch.get_num_threads()
    ours = PagedStream(
        args.model,
        dtype=args.dtype,
        threads=threads,
        max_num_seqs=1,
        quantization=args.quantization,
    )
    folder = str(float_folder(args.model))
    theirs = Transformers(folder, dtype=args.dtype, threads=threads)
    bandwidth = read_bandwidth(weight_bytes(ours.engine))
    ceilings = Ceilings(bandwidth=bandwidth, matrix_rate=matrix_rate())
    print(f"matrix rate {ceilings.matrix_rate / 1e9:.0f} GFLOP/s")
    print("prompt ours tok/s   spread  of the floor  transformers   ratio")
    write_results("prefill", bench(args, ours, theirs, ceilings))


if __name__ == "__main__":
    main()
