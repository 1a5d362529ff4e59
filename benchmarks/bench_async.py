"""Does memory stay the same in a service that one of its readers cannot keep up with?

    python -m benchmarks.bench_async --tokens 200000

Two streams of an `AsyncLLMEngine` on a tiny random model: one is read as fast as it is generated,
the other by a consumer that sleeps after each delta. Every ``--every`` tokens of the fast one:
resident memory and blocks in use; at the end its least-squares slope from token 10,000 on (or from
a quarter of a shorter run), and how many tokens each has got.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import psutil
from tqdm import tqdm

from benchmarks.bench_stream import WARM_UP, slope, tiny_model
from benchmarks.harness import parser, write_results
from paged_stream import AsyncLLMEngine, AsyncStream, EngineConfig, SamplingParams


async def read_slowly(stream: AsyncStream, sleep: float, seen: list[int]) -> None:
    """Read until cancelled, counting the tokens in ``seen[0]``."""
    async with aclosing(stream.generate(SamplingParams(max_tokens=None, ignore_eos=True))) as turn:
        async for delta in turn:
            seen[0] += len(delta.delta_token_ids)
            await asyncio.sleep(sleep)


async def measure(
    engine: AsyncLLMEngine, tokens: int, every: int, sleep: float
) -> tuple[list[dict[str, float]], int, int]:
    """Generate ``tokens`` from the fast stream; returns points on the way, how many tokens the slow
    reader got, and how long its stream is."""
    process, points, seen = psutil.Process(), [], [0]
    fast, slow = await engine.open_stream(), await engine.open_stream()
    for stream in (fast, slow):
        await stream.append([1, 2, 3])
    reader = asyncio.create_task(read_slowly(slow, sleep, seen))
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    count, start = 0, time.perf_counter()
    with tqdm(total=tokens, unit="tok") as progress:
        async for _ in fast.generate(params):
            count += 1
            progress.update()
            if count % every == 0:
                now = time.perf_counter()
                points.append(
                    {
                        "tokens": count,
                        "us_per_token": 1e6 * (now - start) / every,
                        "rss": process.memory_info().rss,
                        "blocks": (await engine.stats()).num_used_blocks,
                        "slow_tokens": seen[0],
                    }
                )
                start = time.perf_counter()
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    return points, seen[0], (await slow.stats()).num_tokens


async def run(args: argparse.Namespace) -> tuple[list[dict[str, float]], int, int]:
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder))
        engine = AsyncLLMEngine(
            EngineConfig(
                model=folder,
                num_sink_tokens=4,
                window_size=args.window_size,
                dtype="float32",
                max_num_seqs=2,
            ),
            max_unread=args.max_unread,
        )
    async with engine:
        return await measure(engine, args.tokens, args.every, args.sleep)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tokens", type=int, default=200_000)
    arguments.add_argument("--every", type=int, default=2_000)
    arguments.add_argument(
        "--sleep", type=float, default=0.05, help="seconds after each slow delta"
    )
    arguments.add_argument("--max-unread", type=int, default=16)
    arguments.add_argument("--window-size", type=int, default=256)
    args = arguments.parse_args()
    points, slow_tokens, slow_length = asyncio.run(run(args))
    steady = [point for point in points if point["tokens"] >= min(WARM_UP, args.tokens // 4)]
    for point in (steady[0], steady[-1]):
        print(
            f"at {point['tokens']:>9,}: {point['rss'] / 2**20:.2f} MiB resident, "
            f"{point['blocks']} blocks, {point['slow_tokens']:,} tokens read slowly"
        )
    median = statistics.median(point["us_per_token"] for point in steady)
    rss_slope = slope(steady, "rss")
    print(f"the fast reader got {args.tokens:,} tokens, {median:.1f} us each")
    print(
        f"the slow reader got {slow_tokens:,}; its stream has {slow_length:,}, no more than "
        f"{args.max_unread} unread ones and the prompt ahead of it"
    )
    print(f"memory slope per 100,000 tokens: {rss_slope / 2**10:+.1f} KiB")
    row = {
        "tokens": args.tokens,
        "slow_tokens": slow_tokens,
        "slow_length": slow_length,
        "sleep": args.sleep,
        "max_unread": args.max_unread,
        "window_size": args.window_size,
        "points": points,
        "us_per_token": median,
        "rss_slope_bytes_per_100k": rss_slope,
    }
    write_results("async", [row])


if __name__ == "__main__":
    main()
