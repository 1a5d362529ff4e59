"""Rows of OpenAI's batch file: each is a request, which a service in this process answers.

Ids and times in an answer follow from the row, so that a row that is computed again gives the same
bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paged_stream.batch.parts import RowFailure
from paged_stream.batch.prompts import row_values
from paged_stream.batch.row_task import REQUEST
from paged_stream.engine.async_engine import AsyncLLMEngine
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.settings import settings_of

# Requests that leave nothing behind.
_EMBEDDINGS = "/v1/embeddings"
URLS = ("/v1/chat/completions", "/v1/completions", _EMBEDDINGS)
_PROMPTS = ("messages", "prompt", "input")
_MOST = 2**31  # requests at a time; `RowRunner` bounds them


@dataclass(frozen=True, slots=True)
class RowRequest:
    """What a row asks for."""

    url: str
    body: dict[str, Any]


def read_request(row: Mapping[str, Any]) -> RowRequest:
    """The request of a row.

    Raises:
        ValueError: names the column and what is allowed.
    """
    values = row_values(row, REQUEST)
    custom_id, method, url, body = (values.get(name) for name in REQUEST)
    if not isinstance(custom_id, str) or not custom_id:
        raise ValueError(f"custom_id must be text, got {custom_id!r}")
    if method != "POST":
        raise ValueError(f"method must be 'POST', got {method!r}")
    if url not in URLS:
        raise ValueError(f"url must be one of {', '.join(URLS)}, got {url!r}")
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"body is no JSON: {error}") from None
    if not isinstance(body, Mapping):
        raise ValueError(f"body must be an object, got {body!r:.80}")
    if body.get("stream"):
        raise ValueError("stream must be left out: an answer is a row of the output")
    return RowRequest(url, dict(body))


def prompt_of(request: RowRequest) -> Any:
    """What the model is to read, whatever the request calls it."""
    return next((request.body[name] for name in _PROMPTS if name in request.body), "")


class RequestRows:
    """Answers requests as ``paged-stream serve`` does.

    Args:
        model: its name in answers. Requests may name any, and mean this one unless it is an
            adapter's.
        params: what their bodies leave out, as far as it is not the default.
        max_row_bytes: largest body.

    Raises:
        ImportError: the service is an extra.
    """

    def __init__(
        self, engine: AsyncLLMEngine, model: str, params: SamplingParams, max_row_bytes: int
    ) -> None:
        make_app, backend, options = import_service()
        limits = options(max_requests=_MOST, max_body_bytes=max_row_bytes)
        back = backend(engine)
        self._adapters = back.adapters
        self._app = make_app(back, model=model, options=limits)
        self._given = _changed_fields(params)

    async def result(self, row: Mapping[str, Any], seed: int) -> dict[str, Any] | RowFailure:
        """The columns of a row with an answer, or why it has none.

        Args:
            seed: of the row; its ids follow from it, and its random choices, unless its body has
                a seed.

        Raises:
            RuntimeError: the engine has failed.
        """
        name = f"{seed:016x}"
        told: dict[str, Any] = {"id": f"batch_req_{name}", "response": None, "error": None}
        try:
            request = read_request(row)
        except ValueError as error:
            told["error"] = {"code": "invalid_request", "message": str(error)}
            return RowFailure(str(error), {"custom_id": row.get("custom_id"), **told})
        content = json.dumps(self._filled(request, seed), default=str).encode()
        status, answer = await _post(self._app, request.url, content)
        if status == 503:
            raise RuntimeError(answer["error"]["message"])
        body = _settled(answer, name)
        told["response"] = {"status_code": status, "request_id": f"req_{name}", "body": body}
        if status != 200:
            reason = answer["error"]["message"]
            return RowFailure(reason, {"custom_id": row["custom_id"], **told})
        usage = answer["usage"]
        counts = {"prompt_tokens": usage["prompt_tokens"]}
        return told | counts | {"output_tokens": usage.get("completion_tokens", 0)}

    def _filled(self, request: RowRequest, seed: int) -> dict[str, Any]:
        """A body with what it leaves out. Nothing is sampled for a vector."""
        filled = dict(request.body)
        name = filled.pop("model", None)
        if isinstance(name, str) and name in self._adapters:
            filled["model"] = name
        if request.url == _EMBEDDINGS:
            return filled
        said = {name for name, value in filled.items() if value is not None}
        if "max_completion_tokens" in said:
            said.add("max_tokens")
        return filled | {n: v for n, v in {**self._given, "seed": seed}.items() if n not in said}


def import_service() -> tuple[Any, Any, Any]:
    """What makes a service, its backend, and its options.

    Raises:
        ImportError: gives the command that installs it.
    """
    try:
        from paged_stream.serve.app import make_app
        from paged_stream.serve.engine_backend import EngineBackend
        from paged_stream.serve.serve_options import ServeOptions
    except ImportError as error:
        raise ImportError(
            f"task='openai' needs an extra: pip install \"paged-stream[serve]\" ({error})"
        ) from error
    return make_app, EngineBackend, ServeOptions


def _changed_fields(params: SamplingParams) -> dict[str, Any]:
    """Fields of a body for the parameters that are not the defaults, and for the bound."""
    fields: dict[str, Any] = {"max_tokens": params.max_tokens}
    for name, setting in settings_of(SamplingParams).items():
        value = getattr(params, name)
        if setting.in_requests and name != "seed" and value != setting.default:
            fields[name] = value
    if params.structured_outputs is not None:
        fields["structured_outputs"] = dict([params.structured_outputs.form])
    return fields


async def _post(app: Any, url: str, content: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an ASGI application's answer."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": url,
        "root_path": "",
        "query_string": b"",
        "headers": headers,
    }
    status, answer, bodies = 0, bytearray(), [content]

    async def receive() -> dict[str, Any]:
        if bodies:
            return {"type": "http.request", "body": bodies.pop()}
        await asyncio.Event().wait()  # the client never leaves
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        answer.extend(message.get("body", b""))

    await app(scope, receive, send)
    return status, json.loads(answer)


def _settled(answer: dict[str, Any], name: str) -> dict[str, Any]:
    """An answer without what differs each time: times are left out or 0, and ids are the row's."""
    settled = {field: value for field, value in answer.items() if field != "metrics"}
    if "id" in settled:
        settled |= {"id": f"{settled['id'].partition('-')[0]}-{name}", "created": 0}
    for choice in settled.get("choices", ()):
        for number, call in enumerate(choice.get("message", {}).get("tool_calls", ())):
            call["id"] = _settled_id(call["id"], f"{name}-{choice['index']}-{number}")
    return settled


def _settled_id(call_id: str, name: str) -> str:
    """An id of the same form, as templates may want that."""
    digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    prefix, mark, rest = call_id.rpartition("_")
    return prefix + mark + digest[: len(rest)]
