"""An answer to a request in the shape of OpenAI's API: its completions, and what they took."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from paged_stream.engine.outputs import RequestDelta, RequestMetrics
from paged_stream.serve.choices import Choice, Json
from paged_stream.serve.errors import AnswerFailedError
from paged_stream.serve.events import metrics_json
from paged_stream.serve.openai_bodies import Stateless, StreamOptions


class Answer:
    """The JSON of one answer.

    Args:
        body: of the request.
        model: the model's name.
        kind: ``"text_completion"`` or ``"chat.completion"``.
        choices: those of the first prompt, then those of the next.
        prompts: token ids of each prompt.
        counts_output: whether generated tokens count.
    """

    def __init__(
        self,
        body: Stateless,
        model: str,
        kind: str,
        choices: Sequence[Choice],
        prompts: Sequence[Sequence[int]],
        *,
        counts_output: bool = True,
    ) -> None:
        self._options = (body.stream_options if body.stream else None) or StreamOptions()
        self._choices = choices
        self._num_each = len(choices) // len(prompts)
        self._num_prompt_tokens = sum(map(len, prompts))
        self._num_tokens = 0
        self._counts_output = counts_output
        self._metrics = RequestMetrics.of_arrival()
        is_chat = kind.startswith("chat")
        self._head: Json = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": f"{kind}.chunk" if is_chat and body.stream else kind,
            "created": int(time.time()),
            "model": model,
        }
        if body.return_token_ids:
            ids = [list(each) for each in prompts]
            self._head["prompt_token_ids"] = ids[0] if len(ids) == 1 else ids

    async def whole(self, deltas: AsyncGenerator[tuple[int, RequestDelta], None]) -> dict[str, Any]:
        """Wait for the whole answer.

        Raises:
            AnswerFailedError: a completion could not go on.
        """
        parts: list[list[Json]] = [[] for _ in self._choices]
        async with aclosing(deltas):
            async for number, delta in deltas:
                index, part = self._next(number, delta)
                if part is not None:
                    parts[index].append(part)
        choices = [choice.joined(own) for choice, own in zip(self._choices, parts, strict=True)]
        return self._head | {"choices": choices} | self._took()

    def part(self, numbered: tuple[int, RequestDelta]) -> Json | None:
        """What one delta adds to the answer, if it adds anything.

        Raises:
            AnswerFailedError: a completion could not go on.
        """
        _, part = self._next(*numbered)
        if part is None:
            return None
        chunk = self._head | {"choices": [part]}
        if self._options.continuous_usage_stats:
            return chunk | {"usage": self._usage()}
        return chunk | {"usage": None} if self._options.include_usage else chunk

    def end(self) -> Json | None:
        """What the request took, to be sent after the parts if it was asked for."""
        if not self._options.include_usage:
            return None
        return self._head | {"choices": []} | self._took()

    def _next(self, number: int, delta: RequestDelta) -> tuple[int, Json | None]:
        if delta.finish_reason == "error":
            raise AnswerFailedError(f"the answer could not go on: {delta.error}")
        self._num_tokens += len(delta.delta_token_ids)
        self._metrics = self._metrics.updated(delta.metrics)
        index = number * self._num_each + delta.index
        return index, self._choices[index].part(delta)

    def _usage(self) -> Json:
        num_tokens = self._num_tokens if self._counts_output else 0
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": self._num_prompt_tokens + num_tokens,
        }

    def _took(self) -> Json:
        return {"usage": self._usage(), "metrics": metrics_json(self._metrics)}
