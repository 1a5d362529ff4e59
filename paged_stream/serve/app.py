"""The HTTP API of an engine or a pool of engines, as an ASGI application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response
from starlette.middleware.cors import CORSMiddleware

from paged_stream.serve.backend import Backend
from paged_stream.serve.completions import CompletionRoutes
from paged_stream.serve.conversations import ConversationRoutes
from paged_stream.serve.description import ERRORS
from paged_stream.serve.embeddings import EmbeddingRoutes
from paged_stream.serve.errors import add_errors, answer
from paged_stream.serve.guards import Guards
from paged_stream.serve.json_answers import JsonAnswer
from paged_stream.serve.live_streams import StreamRoutes
from paged_stream.serve.metrics import CONTENT_TYPE, render
from paged_stream.serve.models import ModelRoutes
from paged_stream.serve.page_files import page_router
from paged_stream.serve.responses import ResponseRoutes
from paged_stream.serve.serve_options import ServeOptions
from paged_stream.serve.service import Service
from paged_stream.serve.tokens import TokenRoutes
from paged_stream.serve.traces import ClientsSpan
from paged_stream.version import __version__


def make_app(backend: Backend, *, model: str, options: ServeOptions | None = None) -> FastAPI:
    """Make an application. It must run in the event loop that the engine belongs to. Its
    ``state.service`` is the `Service`, for whoever ends it.

    Args:
        backend: the engine that answers, and what is known about it.
        model: the model's name in answers.
        options: those of the service, by default ``ServeOptions()``.

    Raises:
        ValueError: as `ServeOptions.keys` and `Service`.
    """
    options = ServeOptions() if options is None else options
    service = Service(backend, model, options)
    app = FastAPI(
        title="paged_stream",
        version=__version__,
        default_response_class=JsonAnswer,
        responses=ERRORS,
    )
    app.state.service = service
    app.include_router(CompletionRoutes(service).router)
    app.include_router(ModelRoutes(service).router)
    app.include_router(EmbeddingRoutes(service).router)
    app.include_router(TokenRoutes(service).router)
    app.include_router(StreamRoutes(service).router)
    app.include_router(ResponseRoutes(service).router)
    app.include_router(ConversationRoutes(service.conversations).router)
    app.include_router(page_router())
    _add_descriptions(app, backend, model)
    add_errors(app)
    app.add_middleware(ClientsSpan)
    app.add_middleware(Guards, options=options)
    if options.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.allowed_origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )
    return app


def _add_descriptions(app: FastAPI, backend: Backend, model: str) -> None:
    @app.get("/health")
    async def health() -> Mapping[str, Any]:
        return await backend.health()

    @app.get("/ready")
    async def ready() -> Response:
        """Whether it can answer: unlike what is only alive, a pool needs a replica for that."""
        if (await backend.health())["replicas"]:
            return JsonAnswer({"ready": True})
        return answer("no replica is ready", "server_error", 503, headers={"retry-after": "1"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        content = render(await backend.engine.stats(), model)
        return Response(content, media_type=CONTENT_TYPE)

    @app.get("/version")
    async def version() -> Mapping[str, Any]:
        return {"version": __version__}
