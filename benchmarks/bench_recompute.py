"""What does streaming save against recomputing a sliding window for every token?

    python -m benchmarks.bench_recompute --cache-size 256 1024

Figure 10 of the StreamingLLM paper: time per generated token against the size of the cache. A live
stream keeps 4 sink tokens and a window that fills the rest. The baseline runs all visible tokens as
a prompt again for every new token: through this engine's own prefill, and through transformers'
forward pass as the paper did, both with logits for the last position only. They take turns.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from benchmarks.bench_decode import random_prompts
from benchmarks.bench_prefill import forward
from benchmarks.engines import PagedStream, Transformers
from benchmarks.float_folder import float_folder
from benchmarks.harness import alternate, parser, spread, write_results
from benchmarks.plots import plot_recompute
from paged_stream import SamplingParams

NUM_SINK_TOKENS = 4


def bench(
    args: argparse.Namespace, ours: PagedStream, theirs: Transformers, cache_size: int
) -> dict:
    params = SamplingParams(temperature=0.0, max_tokens=args.new_tokens, ignore_eos=True)
    (window,) = random_prompts(1, cache_size)
    stream = ours.engine.open_stream(
        num_sink_tokens=NUM_SINK_TOKENS, window_size=cache_size - NUM_SINK_TOKENS
    )
    stream.append(window + window[: cache_size // 2])  # past its window from the first token on

    def generate() -> None:
        for _ in stream.generate(params):
            pass

    with stream:
        generate()  # computes what was appended
        seconds = alternate(
            {
                "streaming": generate,
                "recompute": lambda: ours.run([window], 1),
                "transformers": lambda: forward(theirs, window),
            },
            repeats=args.repeats,
        )
    seconds["streaming"] = [run / args.new_tokens for run in seconds["streaming"]]
    row: dict = {"model": args.model, "dtype": args.dtype, "cache_size": cache_size}
    for name, runs in seconds.items():
        row[f"{name}_seconds"] = statistics.median(runs)
        row[f"{name}_spread"] = spread(runs)
    for name in ("recompute", "transformers"):
        row[f"{name}_ratio"] = row[f"{name}_seconds"] / row["streaming_seconds"]
    print(
        f"{cache_size:>6}{1e3 * row['streaming_seconds']:>14.1f}"
        f"{1e3 * row['recompute_seconds']:>14.1f}{row['recompute_ratio']:>8.1f}"
        f"{1e3 * row['transformers_seconds']:>14.1f}{row['transformers_ratio']:>8.1f}",
        flush=True,
    )
    return row


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    arguments.add_argument(
        "--cache-size", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096]
    )
    arguments.add_argument("--new-tokens", type=int, default=16, help="of the stream, per run")
    arguments.add_argument("--repeats", type=int, default=5)
    args = arguments.parse_args()
    threads = torch.get_num_threads()
    ours = PagedStream(args.model, dtype=args.dtype, threads=threads, max_num_seqs=2)
    folder = str(float_folder(args.model))
    theirs = Transformers(folder, dtype=args.dtype, threads=threads)
    print("ms per token: streaming     recompute   ratio  transformers   ratio")
    rows = [bench(args, ours, theirs, size) for size in args.cache_size]
    write_results("recompute", rows)
    plot_recompute(rows)


if __name__ == "__main__":
    main()
