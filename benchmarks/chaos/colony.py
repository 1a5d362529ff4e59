"""Many streams that live at once in one world, each compared with its twin when it ends."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.chaos.history import VOCABULARY, History, compare
from benchmarks.chaos.life import Life
from benchmarks.chaos.tally import Tally
from benchmarks.chaos.worlds import Interrupted, World
from paged_stream import StreamLostError

LONGEST_LIFE = 60  # operations
LONGEST_HISTORY = 200  # events of a stream that lives on as a copy; all are done again to compare


class Colony:
    """Streams that come and go.

    Args:
        settings: of the engine that twins live in.
        folder: where streams are saved.
        executor: of processes in which streams are compared.
    """

    def __init__(
        self,
        world: World,
        settings: dict[str, Any],
        folder: Path,
        executor: Executor,
        rng: random.Random,
    ) -> None:
        self.tally = Tally()
        self._world = world
        self._settings = settings
        self._folder = folder
        self._executor = executor
        self._random = rng
        self._orphans: list[tuple[Any, History]] = []

    async def run(self, num_streams: int, is_over: Callable[[], bool]) -> None:
        """Let so many streams live at once until it is over."""

        async def live() -> None:
            while not is_over() and len(self.tally.unexpected) < 20:
                await self._live(is_over, num_streams)

        await asyncio.gather(*(live() for _ in range(num_streams)))
        while self._orphans:
            await self._live(is_over, num_streams)

    async def _keep(self, children: list[tuple[Any, History]], most: int) -> None:
        """Let copies of streams live later, unless so many wait for that already."""
        for child, history in children:
            if len(self._orphans) < most and len(history.events) < LONGEST_HISTORY:
                self._orphans.append((child, history))
            else:
                with suppress(Interrupted, StreamLostError):
                    await child.close()

    async def _live(self, is_over: Callable[[], bool], num_streams: int) -> None:
        life = None
        try:
            stream, history = self._orphans.pop() if self._orphans else await self._open()
            life = Life(self._world, stream, history, self._random, self.tally)
            for _ in range(self._random.randrange(1, LONGEST_LIFE)):
                if is_over():
                    break
                await life.act(self._folder)
                await self._keep(life.children, most=num_streams)
                life.children.clear()
            await self._compare(life)
            await stream.close()
        except Interrupted:
            pass  # while it was opened or ended
        except StreamLostError as error:
            self.tally.lost[str(error)] += 1
        except Exception as error:
            if await self._world.explains(error):
                self.tally.lost[type(error).__name__] += 1
                return
            events = life.history.events[-5:] if life else []
            self.tally.unexpected.append(f"{traceback.format_exc()}after {events}")

    async def _open(self) -> tuple[Any, History]:
        opening: dict[str, Any] = {}
        if self._random.random() < 0.3:
            opening["window_size"] = self._random.choice((16, 33, 64))
        if self._random.random() < 0.3:
            opening["num_sink_tokens"] = self._random.choice((0, 1, 7))
        elif self._random.random() < 0.3:
            opening["pin"] = self._random.choices(range(VOCABULARY), k=20)
        return await self._world.open(**opening), History(opening)

    async def _compare(self, life: Life) -> None:
        visible = await life.probe()
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(
            self._executor, compare, self._settings, life.history, visible
        )
        self.tally.compared["streams"] += 1
        self.tally.compared["tokens"] += result.tokens
        if result.differences:
            told = "; ".join(result.differences)
            self.tally.mismatches.append(f"{told}\nof {life.history}")
