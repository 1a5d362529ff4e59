"""Does every stream say what it should, whatever happens around it?

    python -m benchmarks.chaos --minutes 60
    python -m benchmarks.chaos --worlds thread --operations 500 --seed 7

Streams of a tiny random model live for a while, many at once: they append, take turns, are cut,
rewound, parked, forked, saved and loaded. A quarter of all that is cut off in the middle, and some
readers are slow. Meanwhile the disk is full now and then, the clock jumps, signals raise
exceptions, and workers are killed. At its end each stream is compared with one to which the same
was done in an engine of its own, where nothing else happened: all tokens that were read, all that
it sees, and what it says next.

There are four worlds: ``caller`` is an `LLMEngine`, ``thread`` an `AsyncLLMEngine`, ``starved`` the
same with hardly any memory now and then, and ``pool`` an `AsyncRayLLM` with two replicas. All but
the pool guess tokens, which the engines that they are compared with do not. As root,
the disk is a small one in memory that can be full. For jumps of the clock, put the library of
libfaketime (0.9.12; before, every absolute sleep of Python fails under it) in ``LD_PRELOAD`` and
the path of a file with ``+0`` in it into ``FAKETIME_TIMESTAMP_FILE``, with ``FAKETIME_NO_CACHE=1``
and ``FAKETIME_DONT_FAKE_MONOTONIC=1``. Ray's own processes do not start under it, so ``pool`` runs
without; nothing of a pool waits by the clock of the day.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench_stream import tiny_model
from benchmarks.chaos import faults
from benchmarks.chaos.colony import Colony
from benchmarks.chaos.worlds import CallerWorld, PoolWorld, StarvedWorld, ThreadWorld, World
from benchmarks.harness import add_results_option, parser, write_results

WORLDS: dict[str, Callable[[dict[str, Any], random.Random], World]] = {
    "caller": CallerWorld,
    "thread": ThreadWorld,
    "starved": StarvedWorld,
    "pool": PoolWorld,
}
SETTINGS: dict[str, Any] = {
    "window_size": 48,
    "block_size": 8,
    "dtype": "float32",
    "max_num_batched_tokens": 64,
    "max_num_seqs": 8,
    "chunk_size": 32,  # with no prefix cache: nobody's bits depend on who else is there
    "enable_prefix_caching": False,
    "kv_cache_memory_bytes": 600_000,
    "parking_memory_bytes": 100_000,
    "num_threads": 1,
}
NUM_STREAMS = 24


async def inhabit(
    name: str, settings: dict[str, Any], folder: Path, executor: Executor, options: Any
) -> dict[str, Any]:
    """Let a colony live in a world; returns what came of it."""
    rng = random.Random(options.seed)
    world = WORLDS[name](settings | {"parking_dir": folder}, rng)
    colony = Colony(world, settings, folder, executor, rng)
    deadline = time.monotonic() + 60 * options.minutes / len(options.worlds)

    def is_over() -> bool:
        done = colony.tally.operations.total() >= options.operations
        return done or time.monotonic() > deadline

    await world.start()
    happening = [asyncio.ensure_future(fault) for fault in faults_of(world, rng, folder)]
    await colony.run(options.streams, is_over)
    for fault in happening:
        fault.cancel()
    ends = await asyncio.gather(*happening, return_exceptions=True)
    colony.tally.unexpected += [
        f"a fault failed: {end!r}" for end in ends if type(end) is not asyncio.CancelledError
    ]
    gc.collect()
    await world.close()
    colony.tally.unexpected += [f"left behind: {path.name}" for path in folder.rglob(".st*")]
    for text in colony.tally.mismatches + colony.tally.unexpected:
        print(f"{name}: {text}\n", file=sys.stderr)
    return {"world": name, "seed": options.seed, "faults": dict(world.faults), **colony.tally.row()}


def faults_of(world: Any, rng: random.Random, folder: Path) -> Iterator[Any]:
    if os.path.ismount(folder):
        yield faults.fill_disk(world, rng, folder)
    if offset := os.environ.get("FAKETIME_TIMESTAMP_FILE"):
        yield faults.jump_clock(world, rng, Path(offset))
    if isinstance(world, PoolWorld):
        yield faults.kill_replicas(world, rng)
    if isinstance(world, StarvedWorld):
        yield faults.starve(world, rng)


@contextmanager
def small_disk() -> Iterator[Path]:
    """A folder for a megabyte and a half, in memory; without the right to mount one, any folder."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", folder]
        is_mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
        try:
            yield Path(folder)
        finally:
            if is_mounted:
                # Lazily, since whatever looks over a machine's disks may look at this one just now.
                subprocess.run(["umount", "--lazy", folder], check=True)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--worlds", nargs="+", choices=WORLDS, default=list(WORLDS))
    arguments.add_argument("--minutes", type=float, default=60.0, help="for all worlds together")
    arguments.add_argument("--operations", type=int, default=10**9, help="at most, per world")
    arguments.add_argument("--streams", type=int, default=NUM_STREAMS, help="at once")
    arguments.add_argument("--seed", type=int, default=0)
    add_results_option(arguments)
    options = arguments.parse_args()
    spawn = multiprocessing.get_context("spawn")
    rows = []
    with tempfile.TemporaryDirectory() as model, ProcessPoolExecutor(1, spawn) as executor:
        tiny_model(Path(model))
        executor.submit(int).result()  # a process that began later would inherit a limit of memory
        for name in options.worlds:
            with small_disk() as folder:
                row = inhabit(name, SETTINGS | {"model": model}, folder, executor, options)
                rows.append(asyncio.run(row))
                print(rows[-1], flush=True)
    write_results("chaos", rows, options.results)
    return int(any(row["mismatches"] or row["unexpected_errors"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
