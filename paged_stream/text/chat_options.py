"""How a conversation is written as text: the chat template, and what it is given beside messages.
The names are vLLM's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, cast, get_args

# Variables of templates that have arguments of their own.
_OWN = ("add_generation_prompt", "chat_template", "continue_final_message", "messages", "tools")


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingOptions:
    """The keyword arguments that ``open_stream`` and every ``chat`` have in common, checked.

    Args:
        chat_template: a Jinja template, or the path of a file that has one; a text with ``{`` in it
            is a template. By default the model's own.
        chat_template_kwargs: variables for the template, such as ``{"enable_thinking": False}``.
        tools: JSON schemas of functions, for templates that show these to the model. Calls are text
            in the answer, as the model writes them.

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """

    chat_template: str | os.PathLike[str] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.chat_template is not None:
            object.__setattr__(self, "chat_template", read_template(self.chat_template))
        self._check_variables(self.chat_template_kwargs)
        self._check_tools(self.tools)

    def _check_variables(self, variables: object) -> None:
        if variables is None:
            return
        if not isinstance(variables, Mapping) or not all(isinstance(key, str) for key in variables):
            raise ValueError(
                f"chat_template_kwargs must be a dict with names as keys, got {variables!r}"
            )
        for name in _OWN:
            if name in variables:
                raise ValueError(f"chat_template_kwargs: {name!r} is an argument of chat itself")
        object.__setattr__(
            self, "chat_template_kwargs", as_json("chat_template_kwargs", dict(variables))
        )

    def _check_tools(self, tools: object) -> None:
        if tools is None:
            return
        if not isinstance(tools, list | tuple) or not all(isinstance(t, Mapping) for t in tools):
            raise ValueError(f"tools must be a list of JSON schemas, got {tools!r}")
        object.__setattr__(self, "tools", as_json("tools", [dict(tool) for tool in tools]))

    @property
    def given(self) -> WritingSettings:
        """What is not left out, as keyword arguments."""
        names = (field.name for field in fields(WritingOptions))
        values = {name: getattr(self, name) for name in names}
        return cast("WritingSettings", {k: v for k, v in values.items() if v is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions(WritingOptions):
    """The keyword arguments of every ``chat``, checked: those of `WritingOptions`, and these.

    Args:
        add_generation_prompt: let the template write what begins an answer.
        continue_final_message: let the answer go on from the end of the last message, which then
            gets no end. ``add_generation_prompt`` must be False.

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False

    def __post_init__(self) -> None:
        WritingOptions.__post_init__(self)
        for name in ("add_generation_prompt", "continue_final_message"):
            if type(value := getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False, got {value!r}")
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError(
                "continue_final_message goes on with the last message, and add_generation_prompt "
                "begins another; set add_generation_prompt=False"
            )


OnRewrite: TypeAlias = Literal["keep", "cut", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamChatOptions(ChatOptions):
    """The keyword arguments of ``chat`` of streams, checked: those of `ChatOptions`, and this.

    Args:
        on_rewrite: what to do if the template writes earlier messages otherwise than they are in
            the stream. ``"keep"``: leave them; the new messages follow. ``"cut"``: cut the stream
            where it begins to differ, as `StreamApi.cut` does, and append what the template writes
            there now. ``"error"``: raise ValueError.

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """

    on_rewrite: OnRewrite = "keep"

    def __post_init__(self) -> None:
        ChatOptions.__post_init__(self)
        if self.on_rewrite not in get_args(OnRewrite):
            raise ValueError(
                f"on_rewrite must be 'keep', 'cut' or 'error', got {self.on_rewrite!r}"
            )

    def over(self, opened: WritingOptions) -> StreamChatOptions:
        """These, and what they leave out as the stream was opened with it."""
        return replace(self, **cast("dict[str, Any]", {**opened.given, **self.given}))


class WritingSettings(TypedDict, total=False):
    """The fields of `WritingOptions`, for the keyword arguments of ``open_stream``."""

    chat_template: str | os.PathLike[str] | None
    chat_template_kwargs: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]] | None


class ChatSettings(WritingSettings, total=False):
    """The fields of `ChatOptions`, for the keyword arguments of ``chat``."""

    add_generation_prompt: bool
    continue_final_message: bool


class StreamChatSettings(ChatSettings, total=False):
    """The fields of `StreamChatOptions`, for the keyword arguments of ``chat`` of streams."""

    on_rewrite: OnRewrite


USUAL = ChatOptions()


def read_template(template: str | os.PathLike[str]) -> str:
    """A chat template, or what is in the file of that name.

    Raises:
        ValueError: there is no such file, or it has no text.
    """
    if isinstance(template, str) and "{" in template:
        return template
    if not isinstance(template, str | os.PathLike):
        raise ValueError(f"chat_template must be a text or a path, got {template!r}")
    try:
        text = Path(template).expanduser().read_text(encoding="utf-8")
        if "{" not in text:
            raise ValueError("it is no template")
        return text
    except (OSError, ValueError) as error:
        raise ValueError(
            f"chat_template must be a template, with {{ in it, or a file that has one, got "
            f"{os.fspath(template)!r}: {error}"
        ) from None


def as_json(name: str, value: Any) -> Any:
    """A value as it is after a way through JSON: what a template sees has no methods of its own.

    Raises:
        ValueError: it cannot be written as JSON.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {error}, got {value!r}") from None
