"""The JSON in which models write calls of tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def function_of(value: Any) -> tuple[str, str] | None:
    """The name and the arguments of a call; ``None`` if it is none."""
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # JSON within JSON
        found = values_of(arguments)
        arguments = found[0] if len(found) == 1 else None
    if not isinstance(arguments, dict):
        return None
    try:
        return name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):  # a number that JSON does not have
        return None


def values_of(text: str) -> list[Any]:
    """The values of JSON that a text consists of, with semicolons or white space between. Those of
    a list are taken out of it. Nothing if the text has anything else."""
    try:
        values = list(_decoded(text.strip()))
    except (ValueError, RecursionError):
        return []
    is_list = len(values) == 1 and isinstance(values[0], list)
    return list(values[0]) if is_list else values


def _decoded(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder(strict=False)  # a model may write a line break as it is
    while text:
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:].lstrip("; \t\r\n")
