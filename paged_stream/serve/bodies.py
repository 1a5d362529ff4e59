"""What HTTP requests carry; fields that are not known are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.scheduler.settings import settings_of
from paged_stream.scheduler.structured_outputs import StructuredOutputsParams
from paged_stream.text.chat_options import ChatSettings, OnRewrite

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


class Writing(BaseModel):
    """The fields of `WritingOptions`. A template is text here: clients name no files of the
    server."""

    chat_template: str | None = Field(None, pattern=r"\{")
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


class Chat(Writing):
    """The fields of `ChatOptions`."""

    add_generation_prompt: bool = True
    continue_final_message: bool = False

    def settings(self) -> ChatSettings:
        """The arguments of ``chat``."""
        return {
            "chat_template": self.chat_template,
            "chat_template_kwargs": self.chat_template_kwargs,
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
            "tools": self.tools,
        }


class StreamOptions(BaseModel):
    include_usage: bool = False


class NamedSchema(BaseModel):
    """A JSON schema. Its name and ``strict`` change nothing: every answer is valid by it."""

    content: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    """What the answer has to be, as OpenAI's clients write it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    def structure(self) -> dict[str, Any] | None:
        """The same as ``structured_outputs``."""
        if self.type == "json_schema":
            if self.json_schema is None:
                raise ValueError("response_format must have a json_schema if that is its type")
            return {"json": self.json_schema.content}
        return {"json_object": True} if self.type == "json_object" else None


class Stateless(Sampling):
    """What OpenAI's clients send beside; a service has one model, and asks nobody who they are."""

    model: str | None = None
    user: str | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    def params(self) -> SamplingParams:
        params = super().params()
        structure = None if self.response_format is None else self.response_format.structure()
        if structure is None:
            return params
        if params.structured_outputs is not None:
            raise ValueError("response_format and structured_outputs are the same; give one")
        return replace(params, structured_outputs=StructuredOutputsParams(**structure))


class Completion(Stateless):
    prompt: str | list[int]


class ChatCompletion(Stateless, Chat):
    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None  # the newer name of max_tokens

    @property
    def is_chat(self) -> bool:
        return True

    def params(self) -> SamplingParams:
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        return super().params()


class NewStream(Writing):
    model_config = ConfigDict(extra="forbid")

    num_sink_tokens: int | None = None
    window_size: int | None = None
    pin: str | list[int] | list[dict[str, Any]] | None = None


class AppendBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompt: str | list[int]


class TurnBody(Sampling, Chat):
    """A turn of a stream: generate, after appending ``prompt`` or, in the chat template,
    ``messages``, if there are any."""

    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    on_rewrite: OnRewrite = "keep"

    @property
    def is_chat(self) -> bool:
        return self.messages is not None
