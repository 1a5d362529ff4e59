"""The HTTP API of an engine or a pool of engines, as an ASGI application."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from paged_stream.engine.lifetime import EngineStoppedError, StreamLostError
from paged_stream.serve.backend import Backend
from paged_stream.serve.clients import ClientLeftError
from paged_stream.serve.completions import CompletionRoutes
from paged_stream.serve.events import error_body
from paged_stream.serve.live_streams import StreamRoutes, UnknownStreamError
from paged_stream.serve.metrics import CONTENT_TYPE


def make_app(backend: Backend, *, model: str, max_idle_seconds: float | None = None) -> FastAPI:
    """Make an application. It must run in the event loop that the engine belongs to.

    Args:
        backend: the engine that answers, and what is known about it.
        model: the model's name in answers.
        max_idle_seconds: as in `ServeOptions`.
    """
    app = FastAPI(title="paged_stream")
    app.include_router(CompletionRoutes(backend, model).router)
    app.include_router(StreamRoutes(backend.engine, max_idle_seconds).router)
    _add_descriptions(app, backend, model)
    _add_errors(app)
    return app


def _add_descriptions(app: FastAPI, backend: Backend, model: str) -> None:
    started = int(time.time())

    @app.get("/health")
    async def health() -> Mapping[str, Any]:
        return await backend.health()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await backend.metrics(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        entry = {"id": model, "object": "model", "created": started, "owned_by": "paged_stream"}
        return {"object": "list", "data": [entry]}


def _add_errors(app: FastAPI) -> None:
    """Turn exceptions into answers with a status."""

    def answer(error: Exception, kind: str, status: int) -> JSONResponse:
        return JSONResponse(error_body(error, kind), status_code=status)

    @app.exception_handler(ValueError)
    async def refuse(request: Request, error: ValueError) -> JSONResponse:
        return answer(error, "invalid_request_error", 400)

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = (f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors())
        return answer(ValueError("; ".join(wrong)), "invalid_request_error", 422)

    @app.exception_handler(UnknownStreamError)
    async def not_found(request: Request, error: UnknownStreamError) -> JSONResponse:
        return answer(error, "not_found_error", 404)

    @app.exception_handler(ClientLeftError)
    async def give_up(request: Request, error: ClientLeftError) -> Response:
        return Response(status_code=499)  # as proxies log it: nobody reads this

    @app.exception_handler(StreamLostError)
    async def gone(request: Request, error: StreamLostError) -> JSONResponse:
        return answer(error, "server_error", 410)

    @app.exception_handler(EngineStoppedError)
    async def fail(request: Request, error: EngineStoppedError) -> JSONResponse:
        return answer(error, "server_error", 503)
