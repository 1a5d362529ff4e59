"""Every engine of the contract behind one synchronous face, so that each promise is tested once.

To test another implementation, add it to `ENGINES` and its classes to `CLASSES`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pytest

from paged_stream import LLM, AsyncLLMEngine, AsyncStream, EngineConfig, LLMEngine, Stream
from paged_stream.engine.api import AsyncEngineApi, AsyncStreamApi, EngineApi, StreamApi
from paged_stream.engine.requests import (
    conversations_of,
    merge_delta,
    new_output,
    params_per_prompt,
    prompt_list_of,
)
from paged_stream.scheduler.sampling_params import whole_answer

SETTINGS: dict[str, Any] = {
    "num_sink_tokens": 4,
    "window_size": 24,
    "block_size": 8,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 32,
    "dtype": "float32",
    "kv_cache_memory_bytes": 4 << 20,
}


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine):
        return self.submit(coroutine).result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Awaited:
    """An asynchronous engine or stream whose methods are waited for."""

    def __init__(self, inner: Any, loop: Loop) -> None:
        self.inner = inner
        self.loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        return self._waiting(value) if callable(value) else value

    def _waiting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            async def run() -> Any:
                result = method(*args, **kwargs)
                return await result if hasattr(result, "__await__") else result

            result = self.loop.run(run())
            if hasattr(result, "__anext__"):
                return self._iterate(result)
            return Awaited(result, self.loop) if hasattr(result, "__aenter__") else result

        return call

    def _iterate(self, deltas: Any) -> Any:
        async def following() -> Any:
            return await anext(deltas, None)

        try:
            while (delta := self.loop.run(following())) is not None:
                yield delta
        finally:
            self.loop.run(deltas.aclose())

    def __enter__(self) -> Awaited:
        self.loop.run(self.inner.__aenter__())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.loop.run(self.inner.__aexit__(*exc_info))

    def __reduce__(self) -> Any:
        return self.inner.__reduce__()


class AwaitedEngine(Awaited):
    """Gives whole answers to lists, too: one coroutine per prompt."""

    def __init__(self, make: Callable[[], Any]) -> None:
        loop = Loop()
        super().__init__(make(), loop)

    def generate(self, prompts, sampling_params=None, **options):
        prompts = prompt_list_of(prompts)
        return self._complete(self.inner.generate, prompts, sampling_params, **options)

    def chat(self, messages, sampling_params=None, **options):
        conversations = conversations_of(messages)
        params = whole_answer(None) if sampling_params is None else sampling_params
        return self._complete(self.inner.chat, conversations, params, **options)

    def _complete(
        self,
        method,
        prompts,
        sampling_params,
        *,
        request_ids=None,
        priority=0,
        use_tqdm=False,
        **options,
    ):
        ids = request_ids if isinstance(request_ids, list) else [request_ids] * len(prompts)
        params = params_per_prompt(sampling_params, len(prompts))

        async def complete(prompt, request_id, each):
            output = new_output(request_id or "", "", [], each)
            deltas = method(prompt, each, request_id=request_id, priority=priority, **options)
            async for delta in deltas:
                merge_delta(output, delta)
                output.request_id = delta.request_id
            return output

        async def complete_all():
            tasks = [
                asyncio.ensure_future(complete(*each))
                for each in zip(prompts, ids, params, strict=True)
            ]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        return self.loop.run(complete_all())

    def score(self, prompts, *, use_tqdm=False):
        return self.loop.run(self.inner.score(prompts))

    def embed(self, prompts, *, use_tqdm=False):
        return self.loop.run(self.inner.embed(prompts))


@dataclass(frozen=True)
class Implementation:
    """How to make an engine.

    Args:
        make: of the folder of a model, and settings.
        is_async: whether its methods are awaited.
        needs_ray: whether it runs where Ray does.
    """

    make: Callable[..., Any]
    is_async: bool = False
    needs_ray: bool = False


def _config(folder: Any, settings: dict[str, Any]) -> EngineConfig:
    return EngineConfig(model=str(folder), **SETTINGS | settings)


def _ray_llm(folder: Any, **settings: Any) -> Any:
    from paged_stream import RayLLM

    return RayLLM(str(folder), save_every_tokens=16, **SETTINGS | settings)


def _async_ray_llm(folder: Any, **settings: Any) -> Any:
    from paged_stream import AsyncRayLLM

    options = SETTINGS | settings
    engine = AwaitedEngine(lambda: AsyncRayLLM(str(folder), save_every_tokens=16, **options))
    engine.start()
    return engine


ENGINES = {
    "LLM": Implementation(lambda folder, **settings: LLM(str(folder), **SETTINGS | settings)),
    "LLMEngine": Implementation(lambda folder, **settings: LLMEngine(_config(folder, settings))),
    "AsyncLLMEngine": Implementation(
        lambda folder, **settings: AwaitedEngine(
            lambda: AsyncLLMEngine(_config(folder, settings), max_unread=2)
        ),
        is_async=True,
    ),
    "RayLLM": Implementation(_ray_llm, needs_ray=True),
    "AsyncRayLLM": Implementation(_async_ray_llm, is_async=True, needs_ray=True),
}
EVERY_ENGINE = [
    pytest.param(engine, id=name, marks=[pytest.mark.ray] * engine.needs_ray)
    for name, engine in ENGINES.items()
]

_LOADED = {"config", "model_config", "tokenizer", "sink_window", "cache_plan"}
_LOADED |= {"encode", "core", "intake"}
_STEPS = {"add_request", "step", "has_unfinished_requests", "abort_request", "park_idle_streams"}
# Every class of the contract: its protocol, and what it has beside it.
CLASSES: dict[type, tuple[type, set[str]]] = {
    LLM: (EngineApi, _LOADED | _STEPS),
    LLMEngine: (EngineApi, _LOADED | _STEPS),
    AsyncLLMEngine: (AsyncEngineApi, _LOADED | {"shutdown", "streams", "thread"}),
    Stream: (StreamApi, {"inner", "caller"}),
    AsyncStream: (AsyncStreamApi, {"inner", "resume", "snapshot", "close_now", "encode_chat"}),
}
if find_spec("ray") is not None:
    from paged_stream.pool.async_ray_llm import AsyncRayLLM
    from paged_stream.pool.async_stream import AsyncPoolStream
    from paged_stream.pool.ray_llm import RayLLM
    from paged_stream.pool.stream import PoolStream

    _REPLICAS = {"num_replicas", "wait_until_ready", "scale_to", "rolling_restart"}
    CLASSES |= {
        RayLLM: (EngineApi, {"inner"} | _REPLICAS - {"num_replicas"}),
        AsyncRayLLM: (
            AsyncEngineApi,
            {
                "config",
                "lifetime",
                "start",
                "encode",
                "encode_chats",
                "check_request_ids",
                "max_num_requests",
                "score_each",
                "embed_each",
                "summary",
            }
            | _REPLICAS,
        ),
        PoolStream: (StreamApi, {"inner"}),
        AsyncPoolStream: (
            AsyncStreamApi,
            {"open", "append_or_refuse", "check_open", "replica", "summary"},
        ),
    }
