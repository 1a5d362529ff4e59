"""``paged-stream serve``: a service from its start to Ctrl-C."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import threading
from typing import Any

from paged_stream.commands.command import Command
from paged_stream.commands.options import engine_group, settings_group
from paged_stream.config import EngineConfig
from paged_stream.pool.pool_options import PoolOptions
from paged_stream.serve.serve_options import ServeOptions
from paged_stream.serve.state_dir import StateDir
from paged_stream.system.ray_extra import connect, import_ray

_LOGGING = {"log_level": "WARNING", "enable_access_log": False}
SERVICE = settings_group("service", ServeOptions)
POOL = settings_group("pool", PoolOptions)
ENGINE = engine_group()


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C: one engine in this process, or a pool on Ray.

    Raises:
        ValueError: settings that must change, or Ray Serve runs in this cluster already.
        ImportError: an extra is not installed.
    """
    service, config = ServeOptions(**SERVICE.read(args)), EngineConfig(**ENGINE.read(args))
    pool = PoolOptions(**POOL.read(args))
    _ = service.keys  # says what is wrong with their file before a model is loaded
    if service.state_dir is not None:
        StateDir(str(service.state_dir)).release()  # says so if it cannot be used
    if pool.num_replicas > 1:
        ray = import_ray("serve")  # says so before anything is looked at
        from paged_stream.serve.ray_app import deployment

        app = deployment(options=service, pool=pool, **ENGINE.read(args))
        return _run_pool(ray, app, service, config)
    for name, setting in POOL.settings.items():
        if getattr(pool, name) != setting.default:
            raise ValueError(f"{POOL.label(name)} is for a pool; set --num-replicas to 2 or more")
    return _run_engine(service, config)


def _run_engine(service: ServeOptions, config: EngineConfig) -> int:
    try:
        from paged_stream.serve.server import serve_engine
    except ImportError as error:
        raise ImportError(
            f'this needs an extra: pip install "paged-stream[serve]" ({error})'
        ) from error
    _check_model(config)
    _check_address(service)
    serve_engine(config, service, when_ready=lambda: _announce(service))
    return 0


def _run_pool(ray: Any, app: Any, service: ServeOptions, config: EngineConfig) -> int:
    _check_model(config)  # before processes are started that would load it
    _check_address(service)
    connect(ray)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if ray.serve.status().proxies:
        raise ValueError(
            "Ray Serve runs in this cluster already; docs/services.md says how to add an "
            "application to it"
        )
    address = {"host": service.host, "port": service.port}
    try:
        print(f"loading {config.model}", file=sys.stderr)
        ray.serve.start(http_options=address, logging_config=_LOGGING)
        handle = _deploy(ray.serve, app)
        try:
            _announce(service)
            _wait()
        finally:
            if service.state_dir is not None:
                handle.rest.remote().result()
    finally:
        ray.serve.shutdown()
    return 0


def _check_model(config: EngineConfig) -> None:
    """Raises ValueError if there is no such model, or sinks and window do not fit it."""
    from paged_stream.engine.windows import resolve_sink_window
    from paged_stream.models.formats.resolve import resolve_model
    from paged_stream.models.loader import load_config

    files = resolve_model(
        config.model,
        cache_dir=config.cache_dir,
        with_tokenizer=config.tokenizer is None,
        merge_lora=config.merge_lora,
    )
    model_config = load_config(files)
    resolve_sink_window(model_config, config.num_sink_tokens, config.window_size)


def _announce(service: ServeOptions) -> None:
    host = f"[{service.host}]" if ":" in service.host else service.host
    print(f"serving on http://{host}:{service.port}/v1, Ctrl-C ends it", flush=True)


def _deploy(serve: Any, app: Any) -> Any:
    """Start an application; returns its handle.

    Raises:
        ValueError: with what the pool said, which Serve has at the end of a traceback.
    """
    try:
        return serve.run(app, logging_config=_LOGGING)
    except RuntimeError as error:
        applications = serve.status().applications.values()
        deployments = (d for each in applications for d in each.deployments.values())
        lines = [line for d in deployments for line in d.message.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("ValueError: ") if lines else str(error)
        raise ValueError(reason) from error


def _check_address(service: ServeOptions) -> None:
    """Raises ValueError if nothing can listen there. Ray Serve would wait and try again, and one
    engine would load its model first."""
    family = socket.AF_INET6 if ":" in service.host else socket.AF_INET
    try:
        socket.create_server((service.host, service.port), family=family).close()
    except OSError as error:
        raise ValueError(f"cannot listen: {error.strerror}") from error


def _wait() -> None:
    """Until Ctrl-C."""
    threading.Event().wait()


COMMAND = Command(
    name="serve",
    description=(
        "Serve a model over HTTP, in the shape of OpenAI's API and with live streams, on one "
        "machine or a Ray cluster. Ctrl-C ends it; streams are closed, or go to --state-dir."
    ),
    example="paged-stream serve --window-size 2048 --port 8000 --num-replicas 2",
    groups=(SERVICE, POOL, ENGINE),
    run=run,
)
