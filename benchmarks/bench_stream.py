"""Do memory and time per token stay the same however long a stream gets?

    python -m benchmarks.bench_stream --tokens 200000

One stream on a tiny random model is generated token by token, far past its window. Every
``--every`` tokens: blocks in use, resident memory, time per token; at the end a least-squares slope
of each from token 10,000 on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import record
from paged_stream import EngineConfig, LLMEngine, SamplingParams

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--every", type=int, default=2_000)
    parser.add_argument("--window-size", type=int, default=256)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder))
        engine = LLMEngine(
            EngineConfig(
                model=folder,
                num_sink_tokens=4,
                window_size=args.window_size,
                dtype="float32",
                max_num_seqs=1,
            )
        )
    points = measure(engine, args.tokens, args.every)
    steady = [point for point in points if point["tokens"] >= WARM_UP]
    first, last = steady[0], steady[-1]
    for label, point in (("at", first), ("at", last)):
        print(
            f"{label} {point['tokens']:>9,}: {point['us_per_token']:.1f} us per token, "
            f"{point['rss'] / 2**20:.2f} MiB resident, {point['blocks']} blocks, "
            f"{point['evicted']:,} evicted"
        )
    blocks = {point["blocks"] for point in steady}
    time_slope = slope(steady, "us_per_token")
    median = statistics.median(point["us_per_token"] for point in steady)
    rss_slope = slope(steady, "rss")
    print(f"blocks in use from token {WARM_UP:,} on: {sorted(blocks)}")
    print(
        f"slope per 100,000 tokens: time {100 * time_slope / median:+.2f} % of {median:.1f} us, "
        f"memory {rss_slope / 2**10:+.1f} KiB"
    )
    record(
        "stream",
        tokens=args.tokens,
        window_size=args.window_size,
        points=points,
        time_slope_per_100k=time_slope / median,
        rss_slope_bytes_per_100k=rss_slope,
        blocks=sorted(blocks),
    )


if __name__ == "__main__":
    main()
