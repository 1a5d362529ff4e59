"""Exceptions become answers with a status, each in the shape of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from paged_stream.engine.lifetime import EngineStoppedError, StreamLostError
from paged_stream.serve.clients import ClientLeftError
from paged_stream.serve.json_answers import JsonAnswer, error_body

INVALID = "invalid_request_error"
_NOT_FOUND = "not_found_error"
_SERVER = "server_error"


class UnknownModelError(Exception):
    """A request names a model that is not served here."""


class UnknownStreamError(Exception):
    """A request names a stream, or what goes on in one, that is not there; or is another's."""


class TooManyStreamsError(Exception):
    """There is no place for another stream."""


class NoRoomError(Exception):
    """A stream cannot come back into the cache while others run."""


class AnswerFailedError(Exception):
    """An answer could not go on."""


def refusal(error: Exception) -> JsonAnswer | None:
    """The answer to a request that an exception has ended, if that says what was wrong."""
    if isinstance(error, UnknownModelError):
        return answer(error, INVALID, 404, param="model", code="model_not_found")
    if isinstance(error, TooManyStreamsError):
        return answer(error, "rate_limit_error", 429, code="too_many_streams")
    if isinstance(error, NoRoomError):
        return answer(error, _SERVER, 503, headers={"retry-after": "1"})
    for kind, (word, status) in _STATUS.items():
        if isinstance(error, kind):
            return answer(error, word, status)
    return None


_STATUS: dict[type[Exception], tuple[str, int]] = {
    ValueError: (INVALID, 400),
    UnknownStreamError: (_NOT_FOUND, 404),
    StreamLostError: (_SERVER, 410),
    EngineStoppedError: (_SERVER, 503),
    AnswerFailedError: (_SERVER, 500),
}
_KNOWN = (*_STATUS, UnknownModelError, TooManyStreamsError, NoRoomError)


def add_errors(app: FastAPI) -> None:
    """Let an application answer whatever its routes raise."""

    async def refuse(request: Request, error: Exception) -> Response:
        found = refusal(error)
        assert found is not None
        return found

    for kind in _KNOWN:
        app.add_exception_handler(kind, refuse)

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        kind = request.headers.get("content-type", "none")
        if found[0]["loc"] == ("body",) and "json" not in kind:
            text = f"the body must be sent as content-type: application/json, got {kind}"
            return answer(text, INVALID, 415)
        if found[0]["type"] == "json_invalid":
            where, why = found[0]["loc"][-1], found[0]["ctx"]["error"]
            return answer(f"the body is no JSON: {why} at character {where}", INVALID, 400)
        text, param = wrong_fields(found, num_outer=1)
        return answer(text, INVALID, 400, param=param)

    @app.exception_handler(HTTPException)
    async def refuse_request(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path}"
        text = {404: f"there is no {where}", 405: f"there is no {where}, but by another method"}
        message = text.get(error.status_code, str(error.detail))
        return answer(message, INVALID, error.status_code, headers=error.headers)

    @app.exception_handler(ClientLeftError)
    async def give_up(request: Request, error: ClientLeftError) -> Response:
        return Response(status_code=499)  # as proxies log it: nobody reads this

    @app.exception_handler(Exception)
    async def break_down(request: Request, error: Exception) -> Response:
        return answer("the server has failed; its log says why", _SERVER, 500)


def wrong_fields(errors: Sequence[Any], num_outer: int = 0) -> tuple[str, str | None]:
    """What pydantic says about fields: in one text, and the first of them.

    Args:
        num_outer: how many names before that of a field say only where the body is.
    """
    wrong: dict[str, dict[str, None]] = {}
    for each in errors:
        place = ".".join(str(name) for name in each["loc"][num_outer:] if not _is_type(name))
        wrong.setdefault(place, {})[each["msg"]] = None
    text = "; ".join(
        f"{place or 'the body'}: {', or '.join(said)}" for place, said in wrong.items()
    )
    return text, next(iter(wrong), None) or None


def _is_type(name: str | int) -> bool:
    """Whether it is that of a type that a value might have had, and not of the value's place."""
    if isinstance(name, int):
        return False
    return name in _TYPES or not name.isidentifier() or name[0].isupper()


_TYPES = ("bool", "dict", "float", "int", "none", "str")


def answer(
    error: Exception | str,
    kind: str,
    status: int,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JsonAnswer:
    """An error as an answer; the arguments are those of `error_body`."""
    body = error_body(str(error), kind, param=param, code=code)
    return JsonAnswer(body, status_code=status, headers=headers)
