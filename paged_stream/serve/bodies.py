"""What HTTP requests carry; fields that are not known are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict

from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer


class Sampling(BaseModel):
    """Fields of `SamplingParams`, which checks them."""

    model_config = ConfigDict(extra="forbid")

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    stream: bool = False

    def params(self) -> SamplingParams:
        """What is left out is as in `SamplingParams`, and in an answer as in `whole_answer`."""
        names = Sampling.model_fields.keys() - {"stream"}  # not those of subclasses
        values = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in values.items() if value is not None}
        return replace(whole_answer(None), **given) if self.is_chat else SamplingParams(**given)

    @property
    def is_chat(self) -> bool:
        return False


class StreamOptions(BaseModel):
    include_usage: bool = False


class Stateless(Sampling):
    """What OpenAI's clients send beside; the pool has one model, and asks nobody who they are."""

    model: str | None = None
    user: str | None = None
    stream_options: StreamOptions | None = None


class Completion(Stateless):
    prompt: str | list[int]


class ChatCompletion(Stateless):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None  # the newer name of max_tokens

    @property
    def is_chat(self) -> bool:
        return True

    def params(self) -> SamplingParams:
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        return super().params()


class NewStream(BaseModel):
    model_config = ConfigDict(extra="forbid")

    num_sink_tokens: int | None = None
    window_size: int | None = None
    pin: str | list[int] | list[dict[str, Any]] | None = None


class Addition(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: str | list[int]


class Turn(Sampling):
    """A turn of a stream: generate, after appending ``prompt`` or, in the chat template,
    ``messages``, if there are any."""

    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None

    @property
    def is_chat(self) -> bool:
        return self.messages is not None
