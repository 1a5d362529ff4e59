"""What does quantising cost in perplexity, on real text?

    python -m benchmarks.quantized_perplexity --kv-cache-dtype int8 --quantization int8 int4 auto

The first variant is the model in --dtype, and each value of an option is one more, with all else as
in the first; ``auto`` is a GGUF file in its own blocks. All score the same tokens.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks.engines import precision
from benchmarks.harness import parser, write_results
from benchmarks.texts import NOVELS, austen
from benchmarks.weights import model_path
from paged_stream.evaluation.perplexity import measure
from paged_stream.evaluation.variants import Variant

# Fields of EngineConfig that quantise something.
OPTIONS = ("kv_cache_dtype", "quantization")


def variants(args: argparse.Namespace) -> list[dict[str, str]]:
    """Settings of each variant, none for the first."""
    return [{}] + [{name: value} for name in OPTIONS for value in getattr(args, name)]


def perplexity(args: argparse.Namespace, settings: dict[str, Any]) -> float:
    """Of the predictions of the text's tokens 2 to ``args.tokens`` + 1."""
    quantization = settings.get("quantization", "none")
    score = measure(
        Variant.streaming(args.num_sink_tokens, args.window_size),
        [austen(args.text)],
        engine={"model": model_path(args.model)} | settings | precision(quantization, args.dtype),
        num_tokens=args.tokens,
        show_progress=True,
    )
    value = score.perplexity()
    assert value is not None
    return value


def main() -> None:
    arguments = parser(__doc__)
    for name in OPTIONS:
        arguments.add_argument(f"--{name.replace('_', '-')}", nargs="+", default=[], metavar="NAME")
    arguments.add_argument("--model", default="smollm2-135m-instruct")
    arguments.add_argument("--dtype", default="bfloat16")
    arguments.add_argument("--text", choices=NOVELS, default="persuasion")
    arguments.add_argument("--tokens", type=int, default=20_000)
    arguments.add_argument("--num-sink-tokens", type=int, default=4)
    arguments.add_argument("--window-size", type=int, default=1020)
    args = arguments.parse_args()

    rows: list[dict[str, Any]] = []
    print(f"{'variant':<28}{'perplexity':>12}{'difference %':>14}{'s':>8}")
    for settings in variants(args):
        name = " ".join(f"{key}={value}" for key, value in settings.items()) or args.dtype
        started = time.perf_counter()
        value = perplexity(args, settings)
        seconds = time.perf_counter() - started
        difference = 100 * (value / rows[0]["perplexity"] - 1) if rows else 0.0
        print(f"{name:<28}{value:>12.4f}{difference:>+14.3f}{seconds:>8.1f}", flush=True)
        fields = {key: field for key, field in vars(args).items() if key not in OPTIONS}
        rows.append(
            fields | {"variant": name, "perplexity": value, "difference_percent": difference}
        )
    write_results(f"quantized_perplexity_{args.model}", rows)


if __name__ == "__main__":
    main()
