"""A Ray Serve application: one small ingress that speaks HTTP, and a pool behind it.

Requests without state have the shape of OpenAI's API. Streams are opened under ``/v1/streams`` and
stay with their worker, because the one ingress knows where each lives.
"""

# No `from __future__ import annotations`: Serve sends the routes to another process, where FastAPI
# could not find what the names of types stand for.

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from paged_stream.config import EngineConfig
from paged_stream.engine.outputs import RequestDelta
from paged_stream.pool.async_stream import AsyncPoolStream
from paged_stream.pool.pool_options import PoolOptions
from paged_stream.pool.ray_llm import DeltaReader, PoolError, RayLLM
from paged_stream.serve.open_streams import OpenStreams
from paged_stream.serve.serve_options import ServeOptions

try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from ray import serve

    from paged_stream.serve import metrics
    from paged_stream.serve.bodies import (
        AppendBody,
        ChatCompletion,
        Completion,
        NewStream,
        Stateless,
        TurnBody,
    )
except ImportError as error:
    raise ImportError(
        'this needs Ray Serve, which is an extra: pip install "paged-stream[ray]"'
    ) from error

T = TypeVar("T")
_REQUESTS_AT_ONCE = 10_000


# Above the class: Serve takes a copy of it, with what it refers to, as soon as it is made.


def _error(error: Exception, kind: str) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": kind}}


def _events(
    deltas: AsyncGenerator[RequestDelta, None],
    event: Callable[[RequestDelta], dict[str, Any]],
    last: Callable[[], dict[str, Any] | None] = lambda: None,
) -> StreamingResponse:
    """Server-sent events, one per delta and perhaps one more; a client that leaves ends what it
    asked for."""

    async def lines() -> AsyncIterator[str]:
        async with aclosing(deltas):
            try:
                async for delta in deltas:
                    yield f"data: {json.dumps(event(delta))}\n\n"
            except (PoolError, ValueError) as error:
                yield f"data: {json.dumps(_error(error, 'server_error'))}\n\n"
                return
        if (end := last()) is not None:
            yield f"data: {json.dumps(end)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def _begun(
    deltas: AsyncGenerator[RequestDelta, None],
) -> AsyncGenerator[RequestDelta, None]:
    """Wait for the first delta, and give a generator of all."""
    first = await anext(deltas, None)

    async def rest() -> AsyncGenerator[RequestDelta, None]:
        async with aclosing(deltas):
            if first is not None:
                yield first
                async for delta in deltas:
                    yield delta

    return rest()


class UnknownStreamError(Exception):
    """A request names a stream that is not open."""


app = FastAPI(title="paged_stream")


@app.exception_handler(ValueError)
async def refuse(request: Request, error: ValueError) -> JSONResponse:
    return JSONResponse(_error(error, "invalid_request_error"), status_code=400)


@app.exception_handler(RequestValidationError)
async def refuse_fields(request: Request, error: RequestValidationError) -> JSONResponse:
    wrong = (f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors())
    return JSONResponse(
        _error(ValueError("; ".join(wrong)), "invalid_request_error"), status_code=422
    )


@app.exception_handler(UnknownStreamError)
async def not_found(request: Request, error: UnknownStreamError) -> JSONResponse:
    return JSONResponse(_error(error, "not_found_error"), status_code=404)


@app.exception_handler(PoolError)
async def fail(request: Request, error: PoolError) -> JSONResponse:
    return JSONResponse(_error(error, "server_error"), status_code=503)


@serve.deployment(max_ongoing_requests=_REQUESTS_AT_ONCE, ray_actor_options={"num_cpus": 0})
@serve.ingress(app)
class Ingress:
    """Answers HTTP; there is one, and it starts the pool."""

    def __init__(
        self, model: str, max_idle_seconds: float | None, settings: dict[str, Any]
    ) -> None:
        self._model = model
        self._started = int(time.time())
        self._llm = RayLLM(model, **settings)
        self._streams = OpenStreams(max_idle_seconds)

    def __del__(self) -> None:  # Serve calls it when the application ends
        if hasattr(self, "_llm"):
            self._llm.shutdown()

    @app.get("/health")
    async def health(self) -> dict[str, Any]:
        stats = await self._on_pool(self._llm.pool.stats())
        return {
            "replicas": len(stats.replicas),
            "streams": stats.num_streams,
            "load": sum(replica.load for replica in stats.replicas),
        }

    @app.get("/metrics")
    async def read_metrics(self) -> Response:
        stats = await self._on_pool(self._llm.pool.stats())
        return Response(metrics.render(stats), media_type=metrics.CONTENT_TYPE)

    # Without state

    @app.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        model = {"id": self._model, "object": "model", "created": self._started}
        return {"object": "list", "data": [model | {"owned_by": "paged_stream"}]}

    @app.post("/v1/completions")
    async def complete(self, body: Completion) -> Response:
        def choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
            return {"index": index, "text": text, "finish_reason": reason}

        return await self._answer(body, body.prompt, "text_completion", choice, choice)

    @app.post("/v1/chat/completions")
    async def chat(self, body: ChatCompletion) -> Response:
        prompts = await self._on_pool(self._llm.pool.ask("render_chat", [body.messages]))

        def choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
            message = {"role": "assistant", "content": text}
            return {"index": index, "message": message, "finish_reason": reason}

        begun: set[int] = set()

        def part(index: int, text: str, reason: str | None) -> dict[str, Any]:
            role = {} if index in begun else {"role": "assistant"}
            begun.add(index)
            return {"index": index, "delta": role | {"content": text}, "finish_reason": reason}

        return await self._answer(body, prompts[0], "chat.completion", choice, part)

    async def _answer(
        self,
        body: Stateless,
        prompt: str | list[int],
        kind: str,
        choice: Callable[[int, str, str | None], dict[str, Any]],
        part: Callable[[int, str, str | None], dict[str, Any]],
    ) -> Response:
        """Answer a request whole, or in parts as they come."""
        params = body.params()
        # Checked before anything is sent.
        [token_ids] = await self._on_pool(self._llm.pool.encode([prompt], [params]))
        is_chat = kind == "chat.completion"
        head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if is_chat and body.stream else kind,
            "created": int(time.time()),
            "model": self._model,
        }
        count = 0

        def usage() -> dict[str, int]:
            total = len(token_ids) + count
            prompt_tokens = {"prompt_tokens": len(token_ids)}
            return prompt_tokens | {"completion_tokens": count, "total_tokens": total}

        deltas = self._read(self._llm.pool.generate(token_ids, params))
        if body.stream:
            tells_usage = body.stream_options is not None and body.stream_options.include_usage

            def event(delta: RequestDelta) -> dict[str, Any]:
                nonlocal count
                count += len(delta.delta_token_ids)
                choices = [part(delta.index, delta.delta_text, delta.finish_reason)]
                return head | {"choices": choices}

            return _events(
                deltas,
                event,
                lambda: head | {"choices": [], "usage": usage()} if tells_usage else None,
            )
        texts, reasons = [""] * params.n, [""] * params.n
        async with aclosing(deltas):
            async for delta in deltas:
                texts[delta.index] += delta.delta_text
                reasons[delta.index] = delta.finish_reason or ""
                count += len(delta.delta_token_ids)
        choices = [choice(i, texts[i], reasons[i]) for i in range(params.n)]
        return JSONResponse(head | {"choices": choices, "usage": usage()})

    # Streams

    @app.post("/v1/streams")
    async def open(self, body: NewStream) -> dict[str, Any]:
        stream = await self._on_pool(self._llm.pool.open_stream(**body.model_dump()))
        return await self._add(stream)

    @app.get("/v1/streams/{stream_id}")
    async def describe(self, stream_id: str) -> dict[str, Any]:
        stats = await self._on_pool(self._find(stream_id).stats())
        return {
            "id": stream_id,
            "position": stats.num_tokens,
            "visible_tokens": stats.num_visible_tokens,
            "evicted_tokens": stats.num_evicted_tokens,
            "location": stats.location,
        }

    @app.post("/v1/streams/{stream_id}/append")
    async def append(self, stream_id: str, body: AppendBody) -> dict[str, Any]:
        stream = self._find(stream_id)
        await self._on_pool(stream.append(body.prompt))
        return {"id": stream_id, "position": stream.position}

    @app.post("/v1/streams/{stream_id}/generate")
    async def generate(self, stream_id: str, body: TurnBody) -> Response:
        stream, params = self._find(stream_id), body.params()
        if body.messages is not None and body.prompt is not None:
            raise ValueError("prompt and messages are two ways to say something; pass one of them")
        if body.prompt is not None:
            deltas = self._read(stream.complete(body.prompt, params))
        elif body.messages is not None:
            deltas = self._read(stream.chat(body.messages, params))
        else:
            deltas = self._read(stream.generate(params))
        deltas = await _begun(deltas)  # what is wrong with it is known now
        if body.stream:
            return _events(
                deltas,
                lambda delta: {
                    "id": stream_id,
                    "text": delta.delta_text,
                    "token_ids": delta.delta_token_ids,
                    "finish_reason": delta.finish_reason,
                },
            )
        text, token_ids, reason = "", [], None
        async with aclosing(deltas):
            async for delta in deltas:
                text += delta.delta_text
                token_ids += delta.delta_token_ids
                reason = delta.finish_reason
        position = stream.position
        return JSONResponse(
            {"id": stream_id, "text": text, "token_ids": token_ids, "finish_reason": reason}
            | {"position": position}
        )

    @app.post("/v1/streams/{stream_id}/fork")
    async def fork(self, stream_id: str) -> dict[str, Any]:
        return await self._add(await self._on_pool(self._find(stream_id).fork()))

    @app.delete("/v1/streams/{stream_id}")
    async def close(self, stream_id: str) -> dict[str, Any]:
        stream = self._known(stream_id, self._streams.remove(stream_id))
        await self._on_pool(stream.close())
        return {"id": stream_id, "deleted": True}

    async def _add(self, stream: AsyncPoolStream) -> dict[str, Any]:
        stream_id = self._streams.add(stream)
        forgotten = self._streams.remove_forgotten()
        await asyncio.gather(
            *(self._on_pool(each.close()) for each in forgotten), return_exceptions=True
        )
        return {"id": stream_id, "position": stream.position}

    def _find(self, stream_id: str) -> AsyncPoolStream:
        return self._known(stream_id, self._streams.find(stream_id))

    @staticmethod
    def _known(stream_id: str, stream: AsyncPoolStream | None) -> AsyncPoolStream:
        if stream is None:
            raise UnknownStreamError(f"there is no stream {stream_id!r}")
        return stream

    # The pool has a thread and an event loop of its own

    async def _on_pool(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._llm.submit(coroutine))

    async def _read(
        self, deltas: AsyncGenerator[RequestDelta, None]
    ) -> AsyncGenerator[RequestDelta, None]:
        reader = DeltaReader(deltas)
        try:
            while (delta := await self._on_pool(reader.next())) is not None:
                yield delta
        finally:
            await self._on_pool(reader.close())


def build_app(
    model: str,
    *,
    num_replicas: int = 1,
    save_dir: str | Path | None = None,
    save_every_tokens: int = 1024,
    max_idle_seconds: float | None = None,
    **settings: Any,
) -> Any:
    """An application for ``serve.run`` or ``serve run``.

    Args:
        model: as in `EngineConfig`.
        num_replicas: as in `PoolOptions`.
        save_dir: as in `PoolOptions`.
        save_every_tokens: as in `PoolOptions`.
        max_idle_seconds: as in `ServeOptions`.
        settings: any other field of `EngineConfig`.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    options = ServeOptions(max_idle_seconds=max_idle_seconds)
    pool = PoolOptions(
        num_replicas=num_replicas, save_dir=save_dir, save_every_tokens=save_every_tokens
    )
    EngineConfig(model=model, **settings)  # refuses what is wrong
    return Ingress.bind(  # type: ignore[attr-defined]
        model, options.max_idle_seconds, asdict(pool) | settings
    )
