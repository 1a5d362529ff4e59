"""Stateless requests, in the shape of OpenAI's API."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from paged_stream.engine.api import AsyncDeltas
from paged_stream.engine.outputs import RequestDelta, RequestMetrics
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.serve.backend import Backend
from paged_stream.serve.bodies import ChatCompletion, Completion, Stateless
from paged_stream.serve.clients import while_connected
from paged_stream.serve.events import event_stream, metrics_json
from paged_stream.text.chat_options import ChatOptions

# Makes the JSON of a completion from its index, its text and why it ended.
Ending = dict[str, int | str | None]
Choice = Callable[[int, str, Ending], dict[str, Any]]


class CompletionRoutes:
    """``/v1/completions`` and ``/v1/chat/completions``.

    Args:
        model: the model's name in answers.
    """

    def __init__(self, backend: Backend, model: str) -> None:
        self._backend = backend
        self._model = model
        self.router = APIRouter(prefix="/v1")
        self.router.post("/completions")(self.complete)
        self.router.post("/chat/completions")(self.chat)

    async def complete(self, body: Completion, request: Request) -> Response:
        answer = Answer(self._model, "text_completion", _text_choice, _text_choice)
        return await self._respond(body, body.prompt, answer, request)

    async def chat(self, body: ChatCompletion, request: Request) -> Response:
        prompt = await self._backend.encode_chat(body.messages, ChatOptions(**body.settings()))
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        answer = Answer(self._model, kind, _message_choice, MessageParts())
        return await self._respond(body, prompt, answer, request)

    async def _respond(
        self, body: Stateless, prompt: str | list[int], answer: Answer, request: Request
    ) -> Response:
        """Answer when all is there, or part by part."""
        params = body.params()
        # Errors are to be known before anything is sent.
        token_ids = await self._backend.encode(prompt, params)
        answer.num_prompt_tokens = len(token_ids)
        deltas = self._backend.engine.generate(token_ids, params)
        if not body.stream:
            whole = answer.whole(deltas, params)
            return JSONResponse(await while_connected(request.receive, whole))
        options = body.stream_options
        tells_usage = options is not None and options.include_usage
        return event_stream(deltas, answer.part, answer.end if tells_usage else lambda: None)


class Answer:
    """The JSON of one answer.

    Args:
        model: the model's name.
        kind: the type of the answer in OpenAI's API.
        choice: makes the JSON of a whole completion.
        part: makes the JSON of a part of one.
    """

    def __init__(self, model: str, kind: str, choice: Choice, part: Choice) -> None:
        self.num_prompt_tokens = self._num_tokens = 0
        self._metrics = RequestMetrics.of_arrival()
        self._choice = choice
        self._part = part
        self._head = {
            "id": f"{'chatcmpl' if kind.startswith('chat') else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self, deltas: AsyncDeltas, params: SamplingParams) -> dict[str, Any]:
        """Wait for the whole answer."""
        texts, endings = [""] * params.n, [_ending(None, None)] * params.n
        async with aclosing(deltas):
            async for delta in deltas:
                texts[delta.index] += delta.delta_text
                endings[delta.index] = _ending(delta.finish_reason, delta.stop_reason)
                self._count(delta)
        choices = [self._choice(i, texts[i], endings[i]) for i in range(params.n)]
        return self._head | {"choices": choices} | self._usage()

    def part(self, delta: RequestDelta) -> dict[str, Any]:
        """What one delta adds to the answer."""
        self._count(delta)
        ending = _ending(delta.finish_reason, delta.stop_reason)
        choices = [self._part(delta.index, delta.delta_text, ending)]
        return self._head | {"choices": choices}

    def end(self) -> dict[str, Any]:
        """What the request took, to be sent after the parts."""
        return self._head | {"choices": []} | self._usage()

    def _count(self, delta: RequestDelta) -> None:
        self._num_tokens += len(delta.delta_token_ids)
        self._metrics = self._metrics.updated(delta.metrics)

    def _usage(self) -> dict[str, Any]:
        usage = {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self._num_tokens,
            "total_tokens": self.num_prompt_tokens + self._num_tokens,
        }
        return {"usage": usage, "metrics": metrics_json(self._metrics)}


class MessageParts:
    """Makes the JSON of parts of messages. The first part of each has its role."""

    def __init__(self) -> None:
        self._begun: set[int] = set()

    def __call__(self, index: int, text: str, ending: Ending) -> dict[str, Any]:
        role = {} if index in self._begun else {"role": "assistant"}
        self._begun.add(index)
        return {"index": index, "delta": role | {"content": text}, **ending}


def _ending(finish_reason: str | None, stop_reason: int | str | None) -> Ending:
    return {"finish_reason": finish_reason, "stop_reason": stop_reason}


def _text_choice(index: int, text: str, ending: Ending) -> dict[str, Any]:
    return {"index": index, "text": text, **ending}


def _message_choice(index: int, text: str, ending: Ending) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"index": index, "message": message, **ending}
