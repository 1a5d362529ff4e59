"""What does quantising cost in perplexity, on real text?

    python -m benchmarks.quantized_perplexity --kv-cache-dtype int8

The first variant is the model as it is, and each value of an option is one more, with all else as
in the first. All score the same tokens.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from typing import Any

from benchmarks.harness import record
from benchmarks.texts import NOVELS, austen
from benchmarks.weights import model_path
from paged_stream import LLM

# Fields of EngineConfig that quantise something.
OPTIONS = ("kv_cache_dtype",)


def variants(args: argparse.Namespace) -> list[dict[str, str]]:
    """Settings of each variant, none for the first."""
    return [{}] + [{name: value} for name in OPTIONS for value in getattr(args, name)]


def perplexity(args: argparse.Namespace, settings: dict[str, Any]) -> float:
    """Of the predictions of the text's tokens 2 to ``args.tokens`` + 1."""
    llm = LLM(
        model_path(args.model),
        num_sink_tokens=args.num_sink_tokens,
        window_size=args.window_size,
        max_num_seqs=1,
        dtype=args.dtype,
        **settings,
    )
    token_ids = llm.engine.encode(austen(args.text))[: args.tokens + 1]
    logprobs = llm.score(token_ids, use_tqdm=sys.stderr.isatty())[1:]
    return math.exp(-math.fsum(logprobs) / len(logprobs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--text", choices=NOVELS, default="persuasion")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--num-sink-tokens", type=int, default=4)
    parser.add_argument("--window-size", type=int, default=1020)
    args = parser.parse_args()

    first = None
    print(f"{'variant':<28}{'perplexity':>12}{'difference %':>14}{'s':>8}")
    for settings in variants(args):
        name = " ".join(f"{key}={value}" for key, value in settings.items()) or args.dtype
        started = time.perf_counter()
        value = perplexity(args, settings)
        seconds = time.perf_counter() - started
        first = first or value
        difference = 100 * (value / first - 1)
        print(f"{name:<28}{value:>12.4f}{difference:>+14.3f}{seconds:>8.1f}", flush=True)
        record(
            "quantized_perplexity",
            **{key: field for key, field in vars(args).items() if key not in OPTIONS},
            variant=name,
            perplexity=value,
            difference_percent=difference,
        )


if __name__ == "__main__":
    main()
