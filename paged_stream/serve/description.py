"""What the OpenAPI document says of routes beyond their arguments: errors, and answers in parts."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error, in the shape of OpenAI's API."""

    error: ErrorDetail


# Without a status of its own, FastAPI documents errors of another shape.
ERRORS: dict[int | str, dict[str, Any]] = {"default": {"model": ErrorBody, "description": "Error"}}

_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}
# Of a route that answers as a whole, or with events if ``stream`` says so.
IN_PARTS: dict[int | str, dict[str, Any]] = {200: {"content": _EVENTS}}
# Of one that answers with its turn's number if ``background`` says so.
IN_BACKGROUND = IN_PARTS | {202: {"description": "The turn has begun"}}
