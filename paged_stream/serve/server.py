"""An HTTP server with one engine in the same process."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

import uvicorn

from paged_stream.config import EngineConfig
from paged_stream.engine.async_engine import AsyncLLMEngine
from paged_stream.serve.app import make_app
from paged_stream.serve.engine_backend import EngineBackend
from paged_stream.serve.serve_options import ServeOptions

_GRACE_SECONDS = 5  # for clients to read the end of their answers


def serve_engine(
    config: EngineConfig, service: ServeOptions, *, when_ready: Callable[[], object]
) -> None:
    """Load a model and serve it until Ctrl-C or SIGTERM. Only the main thread can do this.

    Args:
        config: settings of the engine.
        service: settings of the service.
        when_ready: called once requests can be answered.

    Raises:
        ValueError: as `AsyncLLMEngine`.
        KeyboardInterrupt: the signal came, and the engine is closed.
    """
    engine = AsyncLLMEngine(config)
    try:
        app = make_app(
            EngineBackend(engine),
            model=str(config.model),
            max_idle_seconds=service.max_idle_seconds,
        )
        server = _Server(
            uvicorn.Config(
                app,
                host=service.host,
                port=service.port,
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            ),
            engine,
            when_ready,
        )
        # The server ends at either signal, and then raises it again for the previous handler.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        asyncio.run(server.serve())
    finally:
        asyncio.run(engine.close())


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, engine: AsyncLLMEngine, when_ready: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self._engine = engine
        self._when_ready = when_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._when_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._engine.close()  # ends the answers that are under way, with an error
        await super().shutdown(sockets)
