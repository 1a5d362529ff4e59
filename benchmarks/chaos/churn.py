"""Does memory stay the same while a hundred thousand streams come and go?

    python -m benchmarks.chaos.churn --streams 100000

Each stream of a tiny random model is opened, told a few tokens, takes a turn and is closed. Some
are parked in between, and some are never closed but collected. Resident memory is noted now and
then; its least-squares slope leaves out the first fifth.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.bench_stream import tiny_model
from benchmarks.chaos.__main__ import SETTINGS
from benchmarks.harness import add_results_option, parser, write_results
from paged_stream import AsyncLLMEngine, EngineConfig, LLMEngine, SamplingParams

PARAMS = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
_POINTS = 50
_AT_ONCE = 16


class Memory:
    """Resident memory by the number of streams that have come and gone."""

    def __init__(self, num_streams: int) -> None:
        self._every = max(1, num_streams // _POINTS)
        self._points: list[tuple[int, int]] = []
        self._process = psutil.Process()

    def note(self, count: int) -> None:
        if count % self._every == 0:
            gc.collect()
            self._points.append((count, self._process.memory_info().rss))

    def row(self) -> dict[str, Any]:
        counts, sizes = np.array(self._points[len(self._points) // 5 :], dtype=float).T
        return {
            "mib_after_a_fifth": float(sizes[0]) / 2**20,
            "mib_at_the_end": float(sizes[-1]) / 2**20,
            "bytes_per_stream": float(np.polyfit(counts, sizes, 1)[0]),
        }


def in_the_callers_thread(config: EngineConfig, num_streams: int) -> Memory:
    memory = Memory(num_streams)
    with LLMEngine(config) as engine:
        for number in range(num_streams):
            stream = engine.open_stream()
            for _ in stream.complete([number % 256, 1, 2], PARAMS):
                pass
            if number % 5 == 0:
                stream.park()
            if number % 7:
                stream.close()
            memory.note(number + 1)
    return memory


async def on_a_thread(config: EngineConfig, num_streams: int) -> Memory:
    memory, numbers = Memory(num_streams), iter(range(num_streams))

    async def live(engine: AsyncLLMEngine, numbers: Iterator[int]) -> None:
        for number in numbers:
            stream = await engine.open_stream()
            async for _ in stream.complete([number % 256, 1, 2], PARAMS):
                pass
            if number % 5 == 0:
                await stream.park()
            if number % 7:
                await stream.close()
            memory.note(number + 1)

    async with AsyncLLMEngine(config) as engine:
        await asyncio.gather(*(live(engine, numbers) for _ in range(_AT_ONCE)))
    return memory


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--streams", type=int, default=100_000, help="in each of the two")
    add_results_option(arguments)
    options = arguments.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)  # of streams that are never closed
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder))
        config = EngineConfig(model=folder, **SETTINGS)
        for name in ("caller", "thread"):
            start = time.perf_counter()
            if name == "caller":
                memory = in_the_callers_thread(config, options.streams)
            else:
                memory = asyncio.run(on_a_thread(config, options.streams))
            seconds = time.perf_counter() - start
            rows.append({"world": name, "streams": options.streams, "seconds": seconds})
            rows[-1] |= memory.row()
            print(rows[-1], flush=True)
    write_results("churn", rows, options.results)


if __name__ == "__main__":
    main()
