"""Engines to be interrupted, and a pool, with one way to use them."""

from __future__ import annotations

import asyncio
import gc
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from typing import Any, Self

from benchmarks.interrupting import Interrupter
from paged_stream import AsyncLLMEngine, EngineConfig, LLMEngine, SamplingParams
from paged_stream.system.ray_extra import connect, import_ray

# Room for few streams: the others are parked, and come back when they are used.
_SMALL = {"kv_cache_memory_bytes": 400_000, "parking_memory_bytes": 100_000}

Attempt = Callable[[str, Callable[[], Any]], tuple[bool, Any]]
Uses = list[tuple[str, Callable[[], Any]]]


class Face(ABC):
    """An engine, whose own methods are to be interrupted.

    Attributes:
        engine: itself.
        kinds: of interrupts.
    """

    engine: Any
    kinds: tuple[str, ...] = Interrupter.KINDS

    def interrupt(
        self, by: Interrupter, kind: str, name: str, function: Callable[[], Any]
    ) -> tuple[bool, Any]:
        """As `Interrupter.run`, of a function that may return a coroutine."""
        return by.run(kind, name, function)

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function undisturbed, which may return a coroutine."""
        return function()

    @abstractmethod
    def answer(
        self, attempt: Attempt, prompts: list[list[int]], params: SamplingParams
    ) -> list[list[int] | None]:
        """Tokens of each prompt, of requests that are interrupted; ``None`` for one that is over
        because of that."""

    def uses(self, ids: Callable[[], list[int]], params: SamplingParams) -> Uses:
        """What else the engine can do."""
        engine, prompts = self.engine, [ids() for _ in range(4)]
        return [
            ("generate of the engine", lambda: engine.generate(prompts, params, use_tqdm=False)),
            ("score of the engine", lambda: engine.score(prompts, use_tqdm=False)),
            ("stats of the engine", engine.stats),
            ("abort", lambda: engine.abort("unknown")),
        ]

    @abstractmethod
    def close(self) -> None:
        """Close the engine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def plain(self, stream: Any) -> PlainStream:
        """A stream to be used undisturbed."""
        return PlainStream(stream, self)

    def turns_left(self) -> int:
        """How many turns and requests the engine has, whose inside is checked by the way."""
        core = self.engine.core
        core.scheduler.check_integrity()
        return len(core.turns) + len(core.turns.requests)


class PlainStream:
    """A stream whose methods are called undisturbed, unless they are only named."""

    def __init__(self, inner: Any, face: Face) -> None:
        self.inner, self._face = inner, face

    def __getattr__(self, name: str) -> Any:
        if name in ("position", "is_generating"):
            return getattr(self.inner, name)
        return lambda *args: self._face.call(self.inner_call(name, *args))

    def generate(self, params: SamplingParams) -> list[Any]:
        return list(self._face.call(self.inner_read("generate", params)))

    def inner_call(self, name: str, *args: Any) -> Callable[[], Any]:
        return lambda: getattr(self.inner, name)(*args)

    def inner_read(self, name: str, *args: Any) -> Callable[[], Any]:
        def read() -> Any:
            deltas = getattr(self.inner, name)(*args)
            return read_all(deltas) if isinstance(deltas, AsyncGenerator) else list(deltas)

        return read


async def read_all(deltas: AsyncGenerator[Any, None]) -> list[Any]:
    return [delta async for delta in deltas]


class SyncFace(Face):
    def __init__(self, folder: str, settings: dict[str, Any], rng: random.Random) -> None:
        self.engine = LLMEngine(EngineConfig(model=folder, **settings | _SMALL))

    def close(self) -> None:
        self.engine.close()

    def answer(
        self, attempt: Attempt, prompts: list[list[int]], params: SamplingParams
    ) -> list[list[int] | None]:
        answers: dict[str, list[int] | None] = {}
        for number, prompt in enumerate(prompts):
            name = f"stepped-{number}"
            attempt("add_request", partial(self.engine.add_request, name, prompt, params))
            answers[name] = [] if name in self.engine.core.turns.requests else None
        while self.engine.has_unfinished_requests():
            attempt("has_unfinished_requests", self.engine.has_unfinished_requests)
            _, deltas = attempt("step", self.engine.step)
            for delta in deltas or ():
                tokens = answers[delta.request_id]
                assert tokens is not None
                tokens += delta.delta_token_ids
        attempt("abort_request", lambda: self.engine.abort_request("stepped-0"))
        return list(answers.values())

    def uses(self, ids: Callable[[], list[int]], params: SamplingParams) -> Uses:
        return [*super().uses(ids, params), ("park_idle_streams", self.engine.park_idle_streams)]


class AsyncFace(Face):
    kinds = ("cancel", "cancel", *Interrupter.KINDS)

    def __init__(self, folder: str, settings: dict[str, Any], rng: random.Random) -> None:
        self._rng = rng
        self._loop = asyncio.new_event_loop()
        self.engine = AsyncLLMEngine(EngineConfig(model=folder, **settings | _SMALL))

    def close(self) -> None:
        self.call(self.engine.close)
        self._loop.close()

    def call(self, function: Callable[[], Any]) -> Any:
        result = function()
        return self._loop.run_until_complete(result) if asyncio.iscoroutine(result) else result

    def interrupt(
        self, by: Interrupter, kind: str, name: str, function: Callable[[], Any]
    ) -> tuple[bool, Any]:
        if kind == "cancel":
            stopped, result = self._cancel(function())
        else:
            stopped, result = by.run(kind, name, lambda: self.call(function))
            if stopped:
                self._new_loop()
                gc.collect()  # the old one's tasks may hold a reader, or a stream that nobody got
        self.call(self.engine.stats)  # behind whatever the interrupted call has asked for
        return stopped, result

    def _cancel(self, coroutine: Coroutine[Any, Any, Any]) -> tuple[bool, Any]:
        async def run() -> tuple[bool, Any]:
            task = asyncio.ensure_future(coroutine)
            asyncio.get_running_loop().call_later(self._rng.uniform(0, 0.02), task.cancel)
            try:
                return False, await task
            except asyncio.CancelledError:
                return True, None

        return self._loop.run_until_complete(run())

    def _new_loop(self) -> None:
        """Go on with another event loop: the interrupted one may wait for what it has missed."""
        asyncio._set_running_loop(None)
        old, self._loop = self._loop, asyncio.new_event_loop()
        old.set_exception_handler(lambda loop, context: None)
        for task in asyncio.all_tasks(old):
            task.cancel()
        for finish in (
            partial(asyncio.sleep, 0),
            partial(asyncio.sleep, 0),
            old.shutdown_asyncgens,
        ):
            last = finish()
            try:
                old.run_until_complete(last)
            except RuntimeError:  # it was told to stop, or believes that it runs
                last.close()
        if not old.is_running():
            old.close()

    def answer(
        self, attempt: Attempt, prompts: list[list[int]], params: SamplingParams
    ) -> list[list[int] | None]:
        answers: list[list[int] | None] = []
        for prompt in prompts:
            deltas = self.engine.generate(prompt, params)
            _, found = attempt("generate of the engine", partial(read_all, deltas))
            answers.append(
                None
                if found is None
                else [token_id for delta in found for token_id in delta.delta_token_ids]
            )
        return answers

    def uses(self, ids: Callable[[], list[int]], params: SamplingParams) -> Uses:
        engine, prompts = self.engine, [ids() for _ in range(4)]
        return [
            ("score of the engine", lambda: engine.score(prompts)),
            ("stats of the engine", engine.stats),
            ("abort", lambda: engine.abort("unknown")),
        ]


class PoolFace(Face):
    """A `RayLLM`. What nobody got of an interrupted call is ended by its event loop, a little
    later; so it is waited for."""

    def __init__(self, folder: str, settings: dict[str, Any], rng: random.Random) -> None:
        connect(import_ray())
        from paged_stream.pool.ray_llm import RayLLM

        self.engine = RayLLM(folder, **settings | _SMALL)

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.engine._thread.run(coroutine)

    def close(self) -> None:
        self.engine.close()

    def interrupt(
        self, by: Interrupter, kind: str, name: str, function: Callable[[], Any]
    ) -> tuple[bool, Any]:
        stopped, result = super().interrupt(by, kind, name, function)
        if stopped:
            gc.collect()
            while self._run(_end_of_what_is_abandoned()):
                pass
        return stopped, result

    def turns_left(self) -> int:
        stats = self.engine.stats()
        if stats.num_lost_replicas:
            raise AssertionError("a replica was lost")
        return stats.num_running + stats.num_waiting + sum(each.load for each in stats.replicas)

    def answer(
        self, attempt: Attempt, prompts: list[list[int]], params: SamplingParams
    ) -> list[list[int] | None]:
        generate = partial(self.engine.generate, prompts, params, use_tqdm=False)
        _, outputs = attempt("generate of the engine", generate)
        if outputs is None:
            return [None] * len(prompts)
        return [output.outputs[0].token_ids for output in outputs]


async def _end_of_what_is_abandoned() -> bool:
    """Wait for what finalizers have begun in this event loop: the ends of streams, and those of
    generators, which asyncio begins; returns whether there was any."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    ends = [task for task in others if any(name in repr(task.get_coro()) for name in _ENDS)]
    if ends:
        await asyncio.wait(ends)
    return bool(ends)


_ENDS = ("Home.close", "async_generator_athrow")


ENGINES: dict[str, Callable[[str, dict[str, Any], random.Random], Face]] = {
    "sync": SyncFace,
    "async": AsyncFace,
    "pool": PoolFace,
}
