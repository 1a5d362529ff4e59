"""JSON as bytes: of answers, of events, and of errors in the shape that OpenAI's API gives them."""

from __future__ import annotations

import json
from typing import Any

import orjson
from fastapi.responses import JSONResponse

_MAX_MESSAGE = 1000  # characters


def encode(content: Any) -> bytes:
    """JSON. Halves of surrogate pairs, which came from the client, are escaped as they came."""
    try:
        return orjson.dumps(content)
    except TypeError:
        return json.dumps(content).encode()


class JsonAnswer(JSONResponse):
    """An answer of JSON."""

    def render(self, content: Any) -> bytes:
        return encode(content)


def error_body(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error.

    Args:
        message: for humans. Half a surrogate pair in it, which came from the client, is escaped;
            its middle is left out where it has more of the client's words than anybody reads.
        kind: one of OpenAI's words for what is wrong, such as ``"invalid_request_error"``.
        param: the field that is wrong.
        code: what is wrong, for programs.
    """
    text = message.encode("utf-8", "backslashreplace").decode()
    if len(text) > _MAX_MESSAGE:
        text = f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 2 :]}"
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}
