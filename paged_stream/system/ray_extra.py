"""Ray, which is an extra: imported when something needs it."""

from __future__ import annotations

import importlib
import logging
from typing import Any


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
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
