"""Which span of OpenTelemetry is current, carried between threads and processes.

Where the process has not loaded OpenTelemetry, nothing is carried: nobody can have begun a span.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


def import_opentelemetry(*modules: str) -> list[Any]:
    """Import modules of it, such as ``"trace"``.

    Raises:
        ImportError: gives the command that installs it.
    """
    try:
        return [importlib.import_module(f"opentelemetry.{module}") for module in modules]
    except ImportError as error:
        raise ImportError(
            'this needs OpenTelemetry, which is an extra: pip install "paged-stream[otel]" '
            f"({error})"
        ) from error


def is_loaded() -> bool:
    """Whether somebody in this process uses OpenTelemetry."""
    return "opentelemetry.context" in sys.modules


def current() -> Any:
    """The context of whoever asks, which has the span that is current there."""
    if not is_loaded():
        return None
    (context,) = import_opentelemetry("context")
    return context.get_current()


@contextmanager
def within(context: Any) -> Iterator[None]:
    """Make what `current` has returned current here."""
    if context is None:
        yield
        return
    (api,) = import_opentelemetry("context")
    token = api.attach(context)
    try:
        yield
    finally:
        api.detach(token)


def to_headers() -> dict[str, str]:
    """What tells another process of the current span; empty without one."""
    headers: dict[str, str] = {}
    if is_loaded():
        (propagate,) = import_opentelemetry("propagate")
        propagate.inject(headers)
    return headers


def from_headers(headers: Mapping[str, str]) -> Any:
    """The context that `to_headers` told of, for `within`."""
    if not is_loaded():
        return None
    (propagate,) = import_opentelemetry("propagate")
    return propagate.extract(headers)
