"""A Ray Serve application: one process that speaks HTTP, with a pool of engines behind it.

There is only one such process, because it knows where each stream lives.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Unpack

from fastapi import FastAPI

from paged_stream.config import EngineConfig, EngineSettings
from paged_stream.engine.api import FilePath
from paged_stream.pool.async_ray_llm import AsyncRayLLM
from paged_stream.pool.pool_options import PoolOptions
from paged_stream.serve.app import make_app
from paged_stream.serve.pool_backend import PoolBackend
from paged_stream.serve.serve_options import ServeOptions
from paged_stream.system.ray_extra import import_ray

_REQUESTS_AT_ONCE = 10_000


class Ingress:
    """What Ray Serve runs."""

    def __init__(self, model: str, options: ServeOptions, settings: dict[str, Any]) -> None:
        self._options = options
        self._pool = AsyncRayLLM(model, **settings)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Start the pool. Ray Serve calls this after the constructor, in the event loop that will
        answer requests."""
        await self._pool.start()
        app = make_app(
            PoolBackend(self._pool),
            model=str(self._pool.config.model),
            options=self._options,
        )
        self._service = app.state.service
        return app

    async def rest(self) -> None:
        """Write streams to their files. The application is to end: Ray Serve would first wait for
        all who follow a stream, and then not for long."""
        self._service.streams.let_go()
        await self._service.rest()

    async def __del__(self) -> None:
        """Ray Serve awaits this when the application ends."""
        if hasattr(self, "_pool"):
            await self._pool.close()


def build_app(
    model: str,
    *,
    num_replicas: int = 1,
    save_dir: FilePath | None = None,
    save_every_tokens: int = 1024,
    heartbeat_seconds: float = 60.0,
    max_idle_seconds: float | None = 3600.0,
    state_dir: FilePath | None = None,
    **settings: Unpack[EngineSettings],
) -> Any:
    """Make an application for ``serve.run`` or ``serve run``.

    Args:
        model: as in `EngineConfig`.
        num_replicas: as in `PoolOptions`.
        save_dir: as in `PoolOptions`.
        save_every_tokens: as in `PoolOptions`.
        heartbeat_seconds: as in `PoolOptions`.
        max_idle_seconds: as in `ServeOptions`.
        state_dir: as in `ServeOptions`.
        settings: any other field of `EngineConfig`.

    Raises:
        ValueError: names the field, its value and what is allowed.
        ImportError: Ray Serve is not installed.
    """
    # Ray Serve's proxy decides under which names it can be reached.
    options = ServeOptions(
        max_idle_seconds=max_idle_seconds, state_dir=state_dir, allowed_hosts="*"
    )
    pool = PoolOptions(
        num_replicas=num_replicas,
        save_dir=save_dir,
        save_every_tokens=save_every_tokens,
        heartbeat_seconds=heartbeat_seconds,
    )
    return deployment(model, options, pool, **settings)


def deployment(
    model: str, options: ServeOptions, pool: PoolOptions, **settings: Unpack[EngineSettings]
) -> Any:
    """As `build_app`, for a service that is described as a whole.

    Raises:
        ValueError: as `build_app`.
        ImportError: as `build_app`.
    """
    serve = import_ray("serve").serve
    EngineConfig(model=model, **settings)  # refuses what is wrong
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        max_ongoing_requests=_REQUESTS_AT_ONCE,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(model, options, asdict(pool) | settings)
