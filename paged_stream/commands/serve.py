"""``paged-stream serve``: options, and a Ray Serve application from its start to Ctrl-C."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any

DESCRIPTION = (
    "Serve a model over HTTP, in the shape of OpenAI's API and with live streams, on one machine "
    "or a Ray cluster. Ctrl-C ends it and closes the streams."
)
EXAMPLE = "paged-stream serve --window-size 2048 --port 8000 --replicas 2"
_LOGGING = {"log_level": "WARNING", "enable_access_log": False}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what a service takes beside the options of the engine."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 is all of the machine's (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    parser.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="engines (default: %(default)s)"
    )
    parser.add_argument(
        "--save-dir",
        metavar="DIR",
        help="where streams are kept for when a replica dies; on a cluster, a folder that all "
        "machines share (default: a temporary one)",
    )
    parser.add_argument(
        "--save-every-tokens",
        type=int,
        default=1024,
        metavar="N",
        help="tokens of a stream between saves (default: %(default)s)",
    )
    parser.add_argument(
        "--max-idle-seconds",
        type=float,
        metavar="SECONDS",
        help="close streams that nobody has named for so long (default: keep them)",
    )


def run(args: argparse.Namespace, engine: Mapping[str, Any]) -> int:
    """Serve until Ctrl-C.

    Raises:
        ValueError: settings that must change, or Ray Serve runs in this cluster already.
        ImportError: Ray is not installed.
    """
    from paged_stream.system.ray_extra import import_ray

    ray = import_ray("serve")  # says so before anything is looked at
    from paged_stream.batch.run import connect
    from paged_stream.engine.windows import resolve_sink_window
    from paged_stream.models.formats.resolve import resolve_model
    from paged_stream.models.loader import load_config
    from paged_stream.serve.app import build_app

    app = build_app(
        args.model,
        num_replicas=args.replicas,
        save_dir=args.save_dir,
        save_every_tokens=args.save_every_tokens,
        max_idle_seconds=args.max_idle_seconds,
        **engine,
    )
    # Before processes are started that would load it.
    model_config = load_config(resolve_model(args.model, cache_dir=engine.get("cache_dir")))
    resolve_sink_window(model_config, args.num_sink_tokens, args.window_size)
    _check_address(args.host, args.port)
    connect(ray)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if ray.serve.status().proxies:
        raise ValueError(
            "Ray Serve runs in this cluster already; docs/services.md says how to add an "
            "application to it"
        )
    try:
        print(f"loading {args.model}", file=sys.stderr)
        ray.serve.start(
            http_options={"host": args.host, "port": args.port}, logging_config=_LOGGING
        )
        _deploy(ray.serve, app)
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"serving on http://{host}:{args.port}/v1, Ctrl-C ends it", flush=True)
        _wait()
    finally:
        ray.serve.shutdown()
    return 0


def _deploy(serve: Any, app: Any) -> None:
    """Raises ValueError with what the pool said, which Serve has at the end of a traceback."""
    try:
        serve.run(app, logging_config=_LOGGING)
    except RuntimeError as error:
        applications = serve.status().applications.values()
        deployments = (d for each in applications for d in each.deployments.values())
        lines = [line for d in deployments for line in d.message.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("ValueError: ") if lines else str(error)
        raise ValueError(reason) from error


def _check_address(host: str, port: int) -> None:
    """Raises ValueError if nothing can listen there. Serve would wait and try again."""
    if not 1 <= port <= 65535:
        raise ValueError(f"port must be in [1, 65535], got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise ValueError(f"cannot listen: {error.strerror}") from error


def _wait() -> None:
    """Until Ctrl-C."""
    threading.Event().wait()
