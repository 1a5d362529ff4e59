"""JSON that every reader takes: without NaN and infinity, and with bytes as base64."""

from __future__ import annotations

import base64
import json
import math
from typing import Any


def to_json(value: Any) -> str:
    """A value as JSON in a line. Numbers that JSON has not are null, bytes are base64, and whatever
    else JSON has no word for, such as a time, is text."""
    try:
        return json.dumps(value, default=_text, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), default=_text)


def _text(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
