"""Do memory and time per token stay the same however long a stream gets?

    python -m benchmarks.bench_stream --tokens 200000

One stream on a tiny random model is generated token by token, far past its window. Every
``--every`` tokens: blocks in use, resident memory, time per token; at the end a least-squares slope
of each from token 10,000 on, and a plot. Then two streams of one engine take turns, one at position
10,000 and one at ``--far``, where prefill has brought it, and their times per token are compared.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import alternate, parser, spread, write_results
from benchmarks.plots import plot_stream
from paged_stream import EngineConfig, LLMEngine, SamplingParams, Stream

WARM_UP = 10_000


def tiny_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def measure(engine: LLMEngine, tokens: int, every: int) -> list[dict[str, float]]:
    """Generate from one stream and describe it at every ``every``-th token."""
    process = psutil.Process()
    points = []
    stream = engine.open_stream()
    stream.append([1, 2, 3])
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    step_times = []
    start = time.perf_counter()
    for count, _ in enumerate(tqdm(stream.generate(params), total=tokens, unit="tok"), 1):
        now = time.perf_counter()
        step_times.append(now - start)
        if count % every == 0:
            stats = stream.stats()
            points.append(
                {
                    "tokens": count,
                    # The median leaves out the moments when the machine did something else.
                    "us_per_token": 1e6 * statistics.median(step_times),
                    "rss": process.memory_info().rss,
                    "blocks": stats.num_blocks,
                    "evicted": stats.num_evicted_tokens,
                }
            )
            step_times.clear()
        start = time.perf_counter()
    stream.close()
    return points


def slope(points: list[dict[str, float]], name: str) -> float:
    """Least-squares change of a figure over 100,000 tokens."""
    x = np.array([point["tokens"] for point in points]) / 100_000
    return float(np.polyfit(x, [point[name] for point in points], 1)[0])


def tiny_engine(folder: str, window_size: int, **settings: Any) -> LLMEngine:
    return LLMEngine(
        EngineConfig(
            model=folder,
            num_sink_tokens=4,
            window_size=window_size,
            dtype="float32",
            enable_prefix_caching=False,
            **settings,
        )
    )


def at_position(engine: LLMEngine, position: int) -> Stream:
    """A stream that has seen so many tokens."""
    stream = engine.open_stream()
    with tqdm(total=position, unit="tok", disable=None) as progress:
        while stream.position < position:
            count = min(100_000, position - stream.position)
            stream.append([1 + i % 200 for i in range(count)])
            progress.update(count)
    return stream


def compare_positions(engine: LLMEngine, far: int, tokens: int, repeats: int) -> dict:
    """Time turns of ``tokens`` tokens at position 10,000 and at ``far``, one after the other."""
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    streams = {position: at_position(engine, position) for position in (WARM_UP, far)}

    def generate(stream: Stream) -> None:
        for _ in stream.generate(params):
            pass

    turns = {str(position): partial(generate, stream) for position, stream in streams.items()}
    seconds = alternate(turns, repeats=repeats)
    near_turns, far_turns = seconds.values()
    # Each turn is set against its neighbour in time, which met the same state of the machine.
    ratios = [late / early for early, late in zip(near_turns, far_turns, strict=True)]
    return {
        "near": WARM_UP,
        "far": far,
        "near_us_per_token": 1e6 * statistics.median(near_turns) / tokens,
        "far_us_per_token": 1e6 * statistics.median(far_turns) / tokens,
        "near_spread": spread(near_turns),
        "ratio": statistics.median(ratios),
    }


def report(points: list[dict[str, float]]) -> dict:
    """Print and return what the points say about memory and time."""
    steady = [point for point in points if point["tokens"] >= WARM_UP]
    for point in (steady[0], steady[-1]):
        print(
            f"at {point['tokens']:>9,}: {point['us_per_token']:.1f} us per token, "
            f"{point['rss'] / 2**20:.2f} MiB resident, {point['blocks']} blocks, "
            f"{point['evicted']:,} evicted"
        )
    blocks = sorted({point["blocks"] for point in steady})
    time_slope = slope(steady, "us_per_token")
    median = statistics.median(point["us_per_token"] for point in steady)
    rss_slope = slope(steady, "rss")
    print(f"blocks in use from token {WARM_UP:,} on: {blocks}")
    print(
        f"slope per 100,000 tokens: time {100 * time_slope / median:+.2f} % of {median:.1f} us, "
        f"memory {rss_slope / 2**10:+.1f} KiB"
    )
    return {
        "time_slope_per_100k": time_slope / median,
        "rss_slope_bytes_per_100k": rss_slope,
        "blocks": blocks,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tokens", type=int, default=200_000, help="at least 20,000")
    arguments.add_argument("--every", type=int, default=2_000)
    arguments.add_argument("--window-size", type=int, default=256)
    arguments.add_argument("--far", type=int, default=1_000_000, help="position to compare")
    arguments.add_argument("--repeats", type=int, default=61, help="turns at each position")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder))
        engine = tiny_engine(folder, args.window_size, max_num_seqs=1)
        two = tiny_engine(folder, args.window_size, max_num_seqs=2, max_num_batched_tokens=4096)
    points = measure(engine, args.tokens, args.every)
    row = {"tokens": args.tokens, "window_size": args.window_size, "points": points}
    write_results("stream", [row | report(points)])
    plot_stream(points)
    row = compare_positions(two, args.far, 64, args.repeats)
    print(
        f"at {row['near']:>9,}: {row['near_us_per_token']:.1f} us per token\n"
        f"at {row['far']:>9,}: {row['far_us_per_token']:.1f} us per token, "
        f"{row['ratio']:.3f} times as much (median of pairs of turns; one varies by "
        f"+-{100 * row['near_spread']:.0f} %)"
    )
    write_results("stream_positions", [row])


if __name__ == "__main__":
    main()
