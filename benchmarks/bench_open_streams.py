"""What do thousands of open streams cost on a cache that holds a few dozen?

    python -m benchmarks.bench_open_streams

Streams of a tiny random model are filled beyond their window, then taken up again, `--active` at a
time and at random, for a few tokens each; the others are parked in host memory. Reported: host
memory per idle stream beyond its K and V, and the time of a round.
"""

from __future__ import annotations

import ctypes
import gc
import random
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from tqdm import tqdm

from benchmarks.bench_stream import tiny_model
from benchmarks.harness import parser, write_results
from paged_stream import EngineConfig, LLMEngine, SamplingParams, Stream

NEW_TOKENS = 8


def anonymous_bytes() -> int:
    """Resident memory that belongs to no file and that somebody holds: what the allocator keeps
    of freed buffers is given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


def take_turns(streams: list[Stream], tokens: list[int]) -> None:
    """Append to all of them and generate from all of them at once."""
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    for stream in streams:
        stream.append(tokens)
    running = [stream.generate(params) for stream in streams]
    while running:
        running = [deltas for deltas in running if next(deltas, None) is not None]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--streams", type=int, default=2000)
    arguments.add_argument("--active", type=int, default=64)
    arguments.add_argument("--rounds", type=int, default=30)
    arguments.add_argument("--window-size", type=int, default=256)
    arguments.add_argument("--cache-mib", type=int, default=16, help="some 100 streams of 256")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder))
        engine = LLMEngine(
            EngineConfig(
                model=folder,
                window_size=args.window_size,
                dtype="float32",
                max_num_seqs=args.active,
                max_num_batched_tokens=2048,
                kv_cache_memory_bytes=args.cache_mib << 20,
                parking_memory_bytes=8 << 30,
                enable_prefix_caching=False,
            )
        )
    generator = random.Random(0)
    length = args.window_size + 50

    def text(count: int) -> list[int]:
        return [generator.randrange(256) for _ in range(count)]

    # As many as the cache holds are there before the first measurement.
    warm = [engine.open_stream() for _ in range(2 * args.active)]
    for start in range(0, len(warm), args.active):
        take_turns(warm[start : start + args.active], text(length))
    before = anonymous_bytes() - engine.stats().parked_host_bytes
    streams = [engine.open_stream() for _ in range(args.streams)]
    for start in tqdm(range(0, len(streams), args.active), unit="round", disable=None):
        take_turns(streams[start : start + args.active], text(length))
    engine.park_idle_streams()
    stats = engine.stats()
    idle = (anonymous_bytes() - stats.parked_host_bytes - before) / len(streams)
    kv_bytes = stats.parked_host_bytes / stats.num_parked_streams

    seconds = []
    for _ in tqdm(range(args.rounds), unit="round", disable=None):
        chosen = generator.sample(streams, args.active)
        started = time.perf_counter()
        take_turns(chosen, text(NEW_TOKENS))
        seconds.append(time.perf_counter() - started)
    stats = engine.stats()
    print(
        f"{stats.num_streams:,} open streams, {stats.num_parked_streams:,} parked; "
        f"the cache holds {stats.num_blocks} blocks"
    )
    print(f"per idle stream: {kv_bytes / 2**10:.1f} KiB of K and V, {idle / 2**10:+.1f} KiB else")
    print(
        f"a round of {args.active} streams, {NEW_TOKENS} tokens in and out each: "
        f"{1e3 * statistics.median(seconds):.0f} ms"
    )
    row = {
        "streams": args.streams,
        "active": args.active,
        "window_size": args.window_size,
        "kv_bytes": kv_bytes,
        "other_bytes": idle,
        "round_seconds": statistics.median(seconds),
    }
    write_results("open_streams", [row])


if __name__ == "__main__":
    main()
