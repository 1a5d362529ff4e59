"""The places that streams live in: the caller's thread, the engine's thread, a pool."""

from __future__ import annotations

import asyncio
import random
import re
import signal
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol, TypeVar

from paged_stream import AsyncLLMEngine, EngineConfig, EngineStoppedError, LLMEngine, Stream
from paged_stream.pool.async_ray_llm import AsyncRayLLM
from paged_stream.setting_kinds import SpeculativeConfig

T = TypeVar("T")
INTERRUPTED_SHARE = 0.2  # of the calls that an interrupt may hit
_MEMORY = re.compile(r"memory|bad_alloc|start new thread")  # as torch, C++ and Python say it
GUESSES: SpeculativeConfig = {"method": "ngram", "prompt_lookup_min": 1}
LONGEST_CALL = 0.004  # seconds after which an interrupt comes at the latest


class Interrupted(Exception):
    """A call was ended by an exception that came from a signal's handler."""


class World(Protocol):
    """What streams live in. Streams have the methods of `AsyncStreamApi`."""

    faults: Counter[str]

    async def start(self) -> None: ...

    async def open(self, **opening: Any) -> Any: ...

    async def load(self, data: bytes) -> Any: ...

    async def explains(self, error: Exception) -> bool:
        """Whether a fault of this world may end a stream with an error."""
        ...

    async def close(self) -> None: ...


class ThreadWorld:
    """An `AsyncLLMEngine`."""

    def __init__(self, settings: dict[str, Any], rng: random.Random) -> None:
        self.faults: Counter[str] = Counter()
        self._config = EngineConfig(**settings, speculative_config=GUESSES)

    async def start(self) -> None:
        self._engine = await asyncio.to_thread(AsyncLLMEngine, self._config)

    async def open(self, **opening: Any) -> Any:
        return await self._engine.open_stream(**opening)

    async def load(self, data: bytes) -> Any:
        return await self._engine.load_stream(data)

    async def explains(self, error: Exception) -> bool:
        return False

    async def close(self) -> None:
        await self._engine.close()


class StarvedWorld(ThreadWorld):
    """An `AsyncLLMEngine` that is short of memory. It may fail with an error, and is replaced."""

    def __init__(self, settings: dict[str, Any], rng: random.Random) -> None:
        super().__init__(settings, rng)
        self._replacing = asyncio.Lock()

    async def explains(self, error: Exception) -> bool:
        if isinstance(error, EngineStoppedError):
            async with self._replacing:
                await self._replace()
            return True
        is_memory = isinstance(error, MemoryError) or _MEMORY.search(str(error)) is not None
        return is_memory

    async def _replace(self) -> None:
        try:
            await self._engine.stats()
        except EngineStoppedError:
            self.faults["engine failed"] += 1
            await self._engine.close()
            await self.start()


class PoolWorld:
    """An `AsyncRayLLM` with two replicas, which are killed now and then."""

    def __init__(self, settings: dict[str, Any], rng: random.Random) -> None:
        self.faults: Counter[str] = Counter()
        self._pool = AsyncRayLLM(num_replicas=2, save_every_tokens=64, **settings)
        self._random = rng

    async def start(self) -> None:
        await self._pool.start()

    async def open(self, **opening: Any) -> Any:
        return await self._pool.open_stream(**opening)

    async def load(self, data: bytes) -> Any:
        return await self._pool.load_stream(data)

    async def replica(self) -> int | None:
        """The process of one replica, or ``None`` if there are not two at the moment."""
        replicas = (await self._pool.stats()).replicas
        return self._random.choice(replicas).pid if len(replicas) == 2 else None

    async def explains(self, error: Exception) -> bool:
        return False

    async def close(self) -> None:
        await self._pool.close()


class CallerWorld:
    """An `LLMEngine`, whose calls signals interrupt with exceptions."""

    def __init__(self, settings: dict[str, Any], rng: random.Random) -> None:
        self.faults: Counter[str] = Counter()
        self._config = EngineConfig(**settings, speculative_config=GUESSES)
        self._random = rng
        self._is_inside = False

    async def start(self) -> None:
        self._engine = LLMEngine(self._config)
        signal.signal(signal.SIGALRM, self._raise)

    async def open(self, **opening: Any) -> Any:
        return CallersStream(await self.call(lambda: self._engine.open_stream(**opening)), self)

    async def load(self, data: bytes) -> Any:
        return CallersStream(await self.call(lambda: self._engine.load_stream(data)), self)

    async def explains(self, error: Exception) -> bool:
        return False

    async def close(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._engine.close()

    async def call(self, function: Callable[[], T]) -> T:
        """Call something that an interrupt may hit.

        Raises:
            Interrupted: one did. What the call did then can be seen by the stream alone.
        """
        await asyncio.sleep(0)
        if self._random.random() < INTERRUPTED_SHARE:
            signal.setitimer(signal.ITIMER_REAL, self._random.uniform(1e-6, LONGEST_CALL))
        try:
            self._is_inside = True
            result = function()
            self._is_inside = False
        except (KeyboardInterrupt, _Alarm) as error:
            self.faults[f"interrupt: {type(error).__name__.lstrip('_')}"] += 1
            raise Interrupted from error
        finally:
            self._is_inside = False  # the handler clears it, too, so that it raises once a call
        return result

    def _raise(self, *_: object) -> None:
        if self._is_inside:
            self._is_inside = False
            raise self._random.choice((KeyboardInterrupt, _Alarm))


class _Alarm(Exception):
    """Any exception that a handler raises."""


class CallersStream:
    """A `Stream` with the methods of `AsyncStreamApi`."""

    def __init__(self, stream: Stream, world: CallerWorld) -> None:
        self._stream = stream
        self._world = world

    @property
    def position(self) -> int:
        return self._stream.position

    def generate(self, params: Any) -> AsyncGenerator[Any, None]:
        return self._read(lambda: self._stream.generate(params))

    def complete(self, prompt: list[int], params: Any) -> AsyncGenerator[Any, None]:
        return self._read(lambda: self._stream.complete(prompt, params))

    async def _read(self, begin: Callable[[], Any]) -> AsyncGenerator[Any, None]:
        deltas = begin()
        try:
            while (delta := await self._world.call(lambda: next(deltas, None))) is not None:
                yield delta
        finally:
            deltas.close()

    async def fork(self) -> CallersStream:
        return CallersStream(await self._world.call(self._stream.fork), self._world)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._stream, name)
        return lambda *arguments: self._world.call(lambda: method(*arguments))
