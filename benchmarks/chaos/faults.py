"""What happens to a world while streams live in it."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.chaos.worlds import PoolWorld, World

_CHUNK = bytes(1 << 16)


async def fill_disk(world: World, rng: random.Random, folder: Path) -> None:
    """Leave no room where streams are parked and saved, for a moment, again and again."""
    filling = folder / "filling"
    while True:
        await asyncio.sleep(rng.uniform(0.1, 1.0))
        with suppress(OSError), filling.open("wb", buffering=0) as file:
            while True:
                file.write(_CHUNK)
        world.faults["full disk"] += 1
        await asyncio.sleep(rng.uniform(0.05, 0.3))
        filling.unlink()
        for saved in folder.glob("*.stream"):
            saved.unlink(missing_ok=True)


async def jump_clock(world: World, rng: random.Random, offset: Path) -> None:
    """Move the clock by up to a year, back and forth, as somebody may who sets it."""
    written = offset.with_name(f"{offset.name}.new")
    while True:
        await asyncio.sleep(rng.uniform(0.2, 1.0))
        before = time.time()
        written.write_text(f"{rng.randrange(-31_536_000, 31_536_000):+d}\n")
        written.replace(offset)  # libfaketime ends a process that reads half of it
        await asyncio.sleep(0.02)  # libfaketime reads the file again after ten milliseconds
        world.faults["clock jump"] += abs(time.time() - before) > 1


async def kill_replicas(world: PoolWorld, rng: random.Random) -> None:
    """Kill the process of a replica now and then, once both are there."""
    while True:
        await asyncio.sleep(rng.uniform(2.0, 6.0))
        pid = await world.replica()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            world.faults["killed worker"] += 1


async def starve(world: World, rng: random.Random) -> None:
    """Let the process have hardly more memory than it has, for a moment, again and again."""
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    while True:
        await asyncio.sleep(rng.uniform(0.2, 1.0))
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + rng.randrange(1 << 20), unlimited[1]))
        world.faults["no memory"] += 1
        try:
            await asyncio.sleep(rng.uniform(0.01, 0.1))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, unlimited)
