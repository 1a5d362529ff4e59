"""What the bodies of requests have in common, and those of streams; fields that are not known are
refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, create_model

from paged_stream.scheduler.sampling_params import SamplingParams, whole_answer
from paged_stream.scheduler.settings import Setting, settings_of
from paged_stream.text.chat_options import ChatSettings, OnRewrite

# Unlike other numbers, these may not come as text or as true: they would be other tokens.
TokenIds: TypeAlias = list[Annotated[int, Strict()]]


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _strict(json_type: Any) -> Any:
    """A type in which true is not 1."""
    if json_type in (int, float):
        return Annotated[json_type, BeforeValidator(_refuse_bool)]
    if json_type == list[int]:
        return list[_strict(int)]  # type: ignore[misc]
    if json_type == dict[str, float]:
        return dict[str, _strict(float)]  # type: ignore[misc]
    return json_type


def _field(setting: Setting) -> Any:
    """It may be left out or null. Its range is only described: `SamplingParams` checks it."""
    kind = setting.kind
    extra = dict[str, Any](kind.json_range)
    return _strict(kind.json_type) | None, Field(
        None, description=setting.help, json_schema_extra=extra
    )


_FIELDS: dict[str, Any] = {
    name: _field(setting)
    for name, setting in settings_of(SamplingParams).items()
    if setting.in_requests
}
_SamplingFields = create_model("_SamplingFields", __config__=ConfigDict(extra="forbid"), **_FIELDS)


class Sampling(_SamplingFields):  # type: ignore[valid-type, misc]
    """The fields of `SamplingParams` that a request may have."""

    stream: bool | None = None

    def params(self) -> SamplingParams:
        """What is left out is as in `SamplingParams`, and in an answer as in `whole_answer`."""
        given = self.given()
        return replace(whole_answer(None), **given) if self.is_chat else SamplingParams(**given)

    def given(self) -> dict[str, Any]:
        """The fields of `SamplingParams` that are not left out."""
        values = {name: getattr(self, name) for name in _FIELDS}
        return {name: value for name, value in values.items() if value is not None}

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


class NewStream(Writing):
    """How a stream is opened."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    num_sink_tokens: int | None = None
    window_size: int | None = None
    pin: str | TokenIds | list[dict[str, Any]] | None = None


class SaveName(BaseModel):
    """What a stream is saved as."""

    model_config = ConfigDict(extra="forbid")

    name: str


class TurnBody(Sampling):
    """A turn of a stream: generate, after appending ``prompt`` if there is one."""

    prompt: str | TokenIds | None = None
    background: bool = False


class ChatBody(Sampling, Chat):
    """A turn of a stream: answer the next messages of its conversation."""

    messages: str | list[dict[str, Any]]
    on_rewrite: OnRewrite = "keep"
    background: bool = False

    @property
    def is_chat(self) -> bool:
        return True


# What JSON has for types of arguments in the contract.
_JSON_TYPES: dict[str, Any] = {"Prompt": str | TokenIds, "int": int}


def body_of(method: Callable[..., Any]) -> type[BaseModel]:
    """The arguments of a method of the contract, as the body of a request."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    fields: dict[str, Any] = {each.name: (_JSON_TYPES[each.annotation], ...) for each in parameters}
    name = f"{method.__name__.title().replace('_', '')}Body"
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
