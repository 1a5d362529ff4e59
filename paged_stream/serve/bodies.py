"""What HTTP requests carry; fields that are not known are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.scheduler.settings import settings_of

# Every field may be left out or null. Ranges are for `SamplingParams` to check.
_FIELDS: dict[str, Any] = {
    name: (setting.kind.json_type | None, Field(None, description=setting.help))
    for name, setting in settings_of(SamplingParams).items()
    if setting.in_requests
}
_SamplingFields = create_model("_SamplingFields", __config__=ConfigDict(extra="forbid"), **_FIELDS)


class Sampling(_SamplingFields):  # type: ignore[valid-type, misc]
    """The fields of `SamplingParams` that a request may have."""

    stream: bool = False

    def params(self) -> SamplingParams:
        """What is left out is as in `SamplingParams`, and in an answer as in `whole_answer`."""
        values = {name: getattr(self, name) for name in _FIELDS}
        given = {name: value for name, value in values.items() if value is not None}
        return replace(whole_answer(None), **given) if self.is_chat else SamplingParams(**given)

    @property
    def is_chat(self) -> bool:
        return False


class StreamOptions(BaseModel):
    include_usage: bool = False


class Stateless(Sampling):
    """What OpenAI's clients send beside; a service has one model, and asks nobody who they are."""

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


class AppendBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: str | list[int]


class TurnBody(Sampling):
    """A turn of a stream: generate, after appending ``prompt`` or, in the chat template,
    ``messages``, if there are any."""

    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None

    @property
    def is_chat(self) -> bool:
        return self.messages is not None
