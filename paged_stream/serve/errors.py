"""Exceptions become answers with a status, each in the shape of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping

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
    """A request names a stream that is not open."""


class AnswerFailedError(Exception):
    """An answer could not go on."""


def add_errors(app: FastAPI) -> None:
    """Let an application answer whatever its routes raise."""

    @app.exception_handler(ValueError)
    async def refuse(request: Request, error: ValueError) -> Response:
        return answer(error, INVALID, 400)

    @app.exception_handler(RequestValidationError)
    async def refuse_fields(request: Request, error: RequestValidationError) -> Response:
        wrong = {".".join(map(str, each["loc"][1:])): each["msg"] for each in error.errors()}
        text = "; ".join(f"{place}: {message}" for place, message in wrong.items())
        return answer(text, INVALID, 400, param=next(iter(wrong), None) or None)

    @app.exception_handler(HTTPException)
    async def refuse_request(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path}"
        text = {404: f"there is no {where}", 405: f"there is no {where}, but by another method"}
        message = text.get(error.status_code, str(error.detail))
        return answer(message, INVALID, error.status_code, headers=error.headers)

    @app.exception_handler(UnknownModelError)
    async def no_model(request: Request, error: UnknownModelError) -> Response:
        return answer(error, INVALID, 404, param="model", code="model_not_found")

    @app.exception_handler(UnknownStreamError)
    async def no_stream(request: Request, error: UnknownStreamError) -> Response:
        return answer(error, _NOT_FOUND, 404)

    @app.exception_handler(ClientLeftError)
    async def give_up(request: Request, error: ClientLeftError) -> Response:
        return Response(status_code=499)  # as proxies log it: nobody reads this

    @app.exception_handler(StreamLostError)
    async def gone(request: Request, error: StreamLostError) -> Response:
        return answer(error, _SERVER, 410)

    @app.exception_handler(EngineStoppedError)
    async def stop(request: Request, error: EngineStoppedError) -> Response:
        return answer(error, _SERVER, 503)

    @app.exception_handler(AnswerFailedError)
    async def fail(request: Request, error: AnswerFailedError) -> Response:
        return answer(error, _SERVER, 500)

    @app.exception_handler(Exception)
    async def break_down(request: Request, error: Exception) -> Response:
        return answer("the server has failed; its log says why", _SERVER, 500)


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
