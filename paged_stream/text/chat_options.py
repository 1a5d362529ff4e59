"""How a conversation is written as text: the chat template, and what it is given beside messages.
The names are vLLM's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

# Variables of templates that have arguments of their own.
_OWN = ("add_generation_prompt", "chat_template", "continue_final_message", "messages", "tools")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """The keyword arguments of every ``chat``, checked.

    Args:
        chat_template: a Jinja template, or the path of a file that has one; a text with ``{`` in it
            is a template. By default the model's own.
        chat_template_kwargs: variables for the template, such as ``{"enable_thinking": False}``.
        add_generation_prompt: let the template write what begins an answer.
        continue_final_message: let the answer go on from the end of the last message, which then
            gets no end. ``add_generation_prompt`` must be False.
        tools: JSON schemas of functions, for templates that show these to the model. Calls are text
            in the answer, as the model writes them.

    Raises:
        ValueError: names the argument, its value and what is allowed.
    """

    chat_template: str | os.PathLike[str] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        if self.chat_template is not None:
            object.__setattr__(self, "chat_template", read_template(self.chat_template))
        for name in ("add_generation_prompt", "continue_final_message"):
            if type(value := getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False, got {value!r}")
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError(
                "continue_final_message goes on with the last message, and add_generation_prompt "
                "begins another; set add_generation_prompt=False"
            )
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


class ChatSettings(TypedDict, total=False):
    """The fields of `ChatOptions`, for the keyword arguments of ``chat``."""

    chat_template: str | os.PathLike[str] | None
    chat_template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool
    continue_final_message: bool
    tools: Sequence[Mapping[str, Any]] | None


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
        return Path(template).expanduser().read_text(encoding="utf-8")
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
