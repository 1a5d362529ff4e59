"""An HTTP server with one engine in the same process."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from paged_stream.config import EngineConfig
from paged_stream.engine.async_engine import AsyncLLMEngine
from paged_stream.serve.app import make_app
from paged_stream.serve.engine_backend import EngineBackend
from paged_stream.serve.patience import be_quiet, patient
from paged_stream.serve.serve_options import ServeOptions
from paged_stream.serve.service import Service

_GRACE_SECONDS = 5.0  # for clients to read the end of their answers


def serve_engine(
    config: EngineConfig, service: ServeOptions, *, when_ready: Callable[[], object]
) -> None:
    """Load a model and serve it until Ctrl-C or SIGTERM. Only the main thread can do this.

    SIGTERM lets answers that are under way go on for ``drain_seconds``, and nothing new begins.
    Ctrl-C, or another signal meanwhile, ends them at once.

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
        app = make_app(EngineBackend(engine), model=str(config.model), options=service)
        server = _Server(
            uvicorn.Config(
                app,
                host=service.host,
                port=service.port,
                lifespan="off",
                log_config=None,
                access_log=False,
                http=patient(service.request_seconds, service.max_connections),
                ws_max_size=service.max_body_bytes,
            ),
            engine,
            app.state.service,
            service.drain_seconds,
            when_ready,
        )
        be_quiet()
        # The server ends at either signal, and then raises it again for the previous handler.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        asyncio.run(server.serve())
    finally:
        asyncio.run(engine.close())


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        engine: AsyncLLMEngine,
        kept: Service,
        drain_seconds: float,
        when_ready: Callable[[], object],
    ) -> None:
        super().__init__(config)
        self._engine = engine
        self._service = kept
        self._drain_seconds = drain_seconds
        self._when_ready = when_ready
        self._hurries = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._when_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT or self.should_exit:
            self._loop.call_soon_threadsafe(self._hurries.set)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, wait for what is under way, and then end it with an error. Streams go
        to their files, if they have some."""
        self._service.streams.let_go()
        ending = asyncio.ensure_future(super().shutdown(sockets))
        hurry = asyncio.ensure_future(self._hurries.wait())
        await asyncio.wait(
            [ending, hurry], timeout=self._drain_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
        await self._service.rest()
        await self._engine.close()
        await asyncio.wait([ending], timeout=_GRACE_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # its client does not read
        await ending
