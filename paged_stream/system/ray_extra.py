"""Ray, which is an extra: imported when something needs it."""

from __future__ import annotations

import importlib
import logging
import os
import socket
from typing import Any

_CONNECT_SECONDS = 10.0
_NICENESS = "RAY_worker_niceness"  # Ray's processes read it when they start


def import_ray(*submodules: str) -> Any:
    """Import Ray, and those of its modules that it does not import by itself.

    Raises:
        ImportError: gives the command that installs it.
    """
    try:
        for name in ("ray", *(f"ray.{submodule}" for submodule in submodules)):
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'this needs Ray, which is an extra: pip install "paged-stream[ray]" ({error})'
        ) from error
    return importlib.import_module("ray")


def connect(ray: Any) -> None:
    """Join a cluster or start Ray here, quietly, unless that has been done."""
    start_ray(ray, log_to_driver=False, logging_level=logging.ERROR)


def start_ray(ray: Any, **options: Any) -> None:
    """Join a cluster or start Ray here, unless that has been done.

    Ray runs its workers at niceness 15, unless ``RAY_worker_niceness`` says otherwise. That leaves
    them nearly nothing beside any busy process, and only root may take it back. So a Ray that is
    started here runs them like this process. A cluster that is there already stays as it is.

    Args:
        options: of ``ray.init``.

    Raises:
        OSError: nobody listens where ``RAY_ADDRESS`` says.
    """
    if ray.is_initialized():
        return
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    is_set = _NICENESS in os.environ
    os.environ.setdefault(_NICENESS, str(os.getpriority(os.PRIO_PROCESS, 0)))
    try:
        ray.init(include_dashboard=False, **options)
    finally:
        if not is_set:
            os.environ.pop(_NICENESS, None)


def _check_address(address: str) -> None:
    """Raises OSError if nobody listens at a host and port. Ray would look for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdigit():
        return  # "auto" and the like, or a client's address
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"RAY_ADDRESS is {address}, where no Ray answers: {error}") from None
