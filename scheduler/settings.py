"""Settings are dataclasses whose fields are written once: name, type, default and kind where the
field is declared, and its help in the ``Args:`` of the class's docstring.

`check_fields` checks them; `settings_of` describes them to command lines, HTTP bodies and pages.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .fields import Kind

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A field of a class of settings.

    Args:
        default: ``dataclasses.MISSING`` if the field must be given.
        help: as the docstring has it, in one line; empty if Python runs without docstrings.
        on_command_line: whether commands, settings files and the environment may have it.
        in_requests: whether the bodies of HTTP requests may have it.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    on_command_line: bool
    in_requests: bool


def takes(
    kind: Kind, *, on_command_line: bool = True, in_requests: bool = True
) -> Mapping[str, Any]:
    """The metadata of a dataclass field."""
    return {"kind": kind, "on_command_line": on_command_line, "in_requests": in_requests}


def setting(default: T, kind: Kind, **where: bool) -> T:
    """A dataclass field with a default; ``where`` is as in `takes`."""
    value: T = dataclasses.field(default=default, metadata=takes(kind, **where))
    return value


def check_fields(settings: Any) -> None:
    """Check the fields of a frozen dataclass that have a kind, and keep what their kinds make of
    the values.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    for field in dataclasses.fields(settings):
        if "kind" in field.metadata:
            value = field.metadata["kind"].check(field.name, getattr(settings, field.name))
            object.__setattr__(settings, field.name, value)


def settings_of(cls: type[Any]) -> dict[str, Setting]:
    """The fields of a class that have a kind, by name, in their order."""
    texts = argument_help(cls)
    return {
        field.name: Setting(
            name=field.name, default=field.default, help=texts.get(field.name, ""), **field.metadata
        )
        for field in dataclasses.fields(cls)
        if "kind" in field.metadata
    }


def argument_help(cls: type[Any]) -> dict[str, str]:
    """What a class's docstring says under ``Args:``, each argument in one line."""
    _, _, rest = (inspect.cleandoc(cls.__doc__ or "")).partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", rest)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.M)
    return {name: " ".join(text.split()) for name, text in entries}


def changes_repr(settings: Any) -> str:
    """A dataclass as it could be written: only the fields that differ from their defaults."""
    values = ((field, getattr(settings, field.name)) for field in dataclasses.fields(settings))
    changed = (f"{field.name}={value!r}" for field, value in values if value != field.default)
    return f"{type(settings).__name__}({', '.join(changed)})"
