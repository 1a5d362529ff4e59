"""One stream's random life: operations of every kind, some of them cut off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from benchmarks.chaos.history import PROBE, VOCABULARY, Event, History, turn_params
from benchmarks.chaos.tally import Tally
from benchmarks.chaos.worlds import Interrupted, World
from paged_stream import StreamLostError

LONGEST_WAIT = 0.03  # seconds after which an operation that is to be cut off is
CUT_OFF_SHARE = 0.25
SLOW_SHARE = 0.1  # of the turns whose reader takes its time
MANY = 100_000  # tokens that a turn which is cut off asks for
_WEIGHTS = {
    **{"append": 5, "generate": 6, "complete": 5, "score": 2, "end_turn": 2},
    **{"cut": 2, "rewind": 2, "park": 2, "fork": 1, "save": 1, "file": 1},
}
# What may be refused: the caches are small, and disks are full now and then.
_REFUSALS = ("no room", "No space left")


class Life:
    """A stream, what has happened to it, and what happens next.

    Attributes:
        children: streams that came from it, with their histories.
    """

    def __init__(
        self, world: World, stream: Any, history: History, rng: random.Random, tally: Tally
    ) -> None:
        self.world = world
        self.stream = stream
        self.history = history
        self.children: list[tuple[Any, History]] = []
        self._random = rng
        self._tally = tally

    async def act(self, folder: Path) -> None:
        """Do one random thing, and note what it did to the stream.

        Args:
            folder: where a file may be saved.

        Raises:
            StreamLostError: the stream is lost.
        """
        name = self._random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        if name in ("cut", "rewind"):
            name = await self._edit(name)
        elif name == "file":
            await self._do(lambda: self.stream.save(folder / f"{id(self)}.stream"))
        elif name == "park":
            await self._do(self.stream.park)
        elif name == "fork":
            await self._bear(self.stream.fork)
        elif name == "save":
            await self._bear(self._copy)
        else:
            await self._extend(name)
        self._tally.operations[name] += 1

    async def probe(self) -> list[tuple[int, list[int]]]:
        """Let the stream say a few words; returns what it sees then, in runs."""
        while await self._say() < PROBE:
            pass
        return [(run.start, run.token_ids) for run in (await self._visible()).runs]

    async def _say(self) -> int:
        """Let the stream generate a few tokens; returns how many could be read."""
        before, read = await self._rest(), list[int]()
        params = turn_params(PROBE, None)
        await self._do(lambda: self._read(self.stream.complete([1], params), read))
        self._note(await self._rest() - before, [1], None, read)
        return len(read)

    async def _extend(self, name: str) -> None:
        """Append, generate, or both."""
        rng = self._random
        before, ids, read = await self._rest(), self._ids(), list[int]()
        is_cut_off = rng.random() < CUT_OFF_SHARE
        seed = rng.choice((None, rng.randrange(1000)))
        params = turn_params(
            MANY if is_cut_off or name == "end_turn" else rng.randrange(1, 25), seed
        )
        if name == "append":
            await self._do(lambda: self.stream.append(ids), is_cut_off)
        elif name == "score":
            await self._do(lambda: self.stream.score(ids), is_cut_off)
        elif name == "end_turn":
            await self._end(lambda: self._read(self.stream.complete(ids, params), read))
        elif name == "complete" or not self.history.events:
            await self._do(lambda: self._read(self.stream.complete(ids, params), read), is_cut_off)
        else:
            ids = []
            await self._do(lambda: self._read(self.stream.generate(params), read), is_cut_off)
        self._note(await self._rest() - before, ids, seed, read)

    def _note(self, count: int, ids: list[int], seed: int | None, read: list[int]) -> None:
        """Note how many tokens longer the stream is, the first of them appended."""
        appended, generated = ids[:count], count - len(ids)
        if count < 0 or len(read) > max(0, generated):
            raise ValueError(f"{len(ids)} tokens appended, {len(read)} read, {count} longer")
        if appended:
            self.history.events.append(Event("append", tuple(appended)))
        if generated > 0:
            self.history.events.append(Event("generate", (generated,), seed, tuple(read)))

    async def _edit(self, name: str) -> str:
        """Cut or rewind what stands behind the last gap; append if that is too short."""
        before = await self._visible()
        last = before.runs[-1] if before.runs else None
        begin = max(last.start, before.num_sink_tokens) + 2 if last else 0
        end = last.start + len(last.token_ids) - 1 if last else 0
        if end - begin < 2:
            await self._extend("append")
            return "append"
        start, stop = sorted(self._random.sample(range(begin, end), 2))
        is_cut_off = self._random.random() < CUT_OFF_SHARE
        edit = (start, stop) if name == "cut" else (start,)
        await self._do(lambda: getattr(self.stream, name)(*edit), is_cut_off)
        if (await self._visible()).runs != before.runs:
            self.history.events.append(Event(name, edit))
        return name

    async def _bear(self, copy: Callable[[], Awaitable[Any]]) -> None:
        await self._rest()
        child = await self._do(copy, self._random.random() < CUT_OFF_SHARE)
        if child is not None:
            self.children.append((child, self.history.copy()))

    async def _copy(self) -> Any:
        return await self.world.load(await self.stream.save_bytes())

    async def _read(self, deltas: AsyncGenerator[Any, None], read: list[int]) -> None:
        is_slow = self._random.random() < SLOW_SHARE
        async with aclosing(deltas):
            async for delta in deltas:
                read += delta.delta_token_ids
                if is_slow:
                    await asyncio.sleep(self._random.uniform(0.0, LONGEST_WAIT))

    async def _end(self, turn: Callable[[], Awaitable[None]]) -> None:
        """Let a turn run for a while, then end it by `end_turn`."""
        task = asyncio.ensure_future(turn())
        await asyncio.wait([task], timeout=self._random.uniform(0.0, LONGEST_WAIT))
        while not task.done():
            await self._certainly(self.stream.end_turn)
            await asyncio.wait([task], timeout=LONGEST_WAIT)
        await self._do(lambda: task)

    async def _do(self, make: Callable[[], Awaitable[Any]], is_cut_off: bool = False) -> Any:
        """Do something, perhaps cut it off; ``None`` if it came to nothing."""
        task = asyncio.ensure_future(make())
        if is_cut_off:
            await asyncio.wait([task], timeout=self._random.uniform(0.0, LONGEST_WAIT))
            task.cancel()
        try:
            result = await task
        except asyncio.CancelledError:
            self._tally.ends["cut off"] += 1
        except Interrupted:
            self._tally.ends["interrupted"] += 1
        except StreamLostError:
            raise
        except (RuntimeError, OSError) as error:
            reason = next((text for text in _REFUSALS if text in str(error)), None)
            if reason is None:
                raise
            self._tally.ends[f"refused: {reason}"] += 1
        else:
            self._tally.ends["done"] += 1
            return result

    async def _rest(self) -> int:
        """Wait until nothing happens to the stream; returns its position."""
        await self._certainly(self.stream.end_turn)
        await self._certainly(self.stream.stats)
        position: int = self.stream.position
        return position

    async def _visible(self) -> Any:
        await self._rest()
        return await self._certainly(self.stream.visible)

    async def _certainly(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Do something that changes no tokens, again if it is interrupted."""
        while True:
            try:
                return await make()
            except Interrupted:
                continue

    def _ids(self) -> list[int]:
        longest = self._random.choice((8, 30, 30, 700))
        return self._random.choices(range(VOCABULARY), k=self._random.randrange(1, longest))
