"""The HTTP API of an engine or a pool of engines, as an ASGI application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from paged_stream.serve.backend import Backend
from paged_stream.serve.completions import CompletionRoutes
from paged_stream.serve.errors import add_errors
from paged_stream.serve.json_answers import JsonAnswer
from paged_stream.serve.live_streams import StreamRoutes
from paged_stream.serve.metrics import CONTENT_TYPE
from paged_stream.serve.models import ModelRoutes
from paged_stream.serve.service import Service
from paged_stream.serve.tokens import TokenRoutes
from paged_stream.version import __version__


def make_app(backend: Backend, *, model: str, max_idle_seconds: float | None = None) -> FastAPI:
    """Make an application. It must run in the event loop that the engine belongs to.

    Args:
        backend: the engine that answers, and what is known about it.
        model: the model's name in answers.
        max_idle_seconds: as in `ServeOptions`.
    """
    service = Service(backend, model)
    app = FastAPI(title="paged_stream", default_response_class=JsonAnswer)
    app.include_router(CompletionRoutes(service).router)
    app.include_router(ModelRoutes(service).router)
    app.include_router(TokenRoutes(service).router)
    app.include_router(StreamRoutes(backend.engine, max_idle_seconds).router)
    _add_descriptions(app, backend)
    add_errors(app)
    return app


def _add_descriptions(app: FastAPI, backend: Backend) -> None:
    @app.get("/health")
    async def health() -> Mapping[str, Any]:
        return await backend.health()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await backend.metrics(), media_type=CONTENT_TYPE)

    @app.get("/version")
    async def version() -> Mapping[str, Any]:
        return {"version": __version__}
