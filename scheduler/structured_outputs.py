"""`StructuredOutputsParams`: what a request's text has to be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from .fields import Kind, Switch
from .settings import changes_repr, check_fields, setting
from .word_fields import Text, Texts


@dataclass(frozen=True, slots=True)
class JsonSchema(Kind):
    """A JSON schema: an object or a bool, or the text of one, as which it is kept."""

    @property
    def allowed(self) -> str:
        return "JSON schema"

    def _check(self, name: str, value: Any) -> str:
        try:
            text = value if isinstance(value, str) else json.dumps(value)
            if isinstance(json.loads(text), dict | bool):
                return text
        except (TypeError, ValueError, RecursionError):
            pass
        raise ValueError(
            f"{name} must be a JSON schema, as a dict or as text{self._or_none}, got {value!r}"
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StructuredOutputsParams:
    """What the text that a request generates has to be. Names and meanings are vLLM's; exactly one
    is given.

    Args:
        json: JSON that is valid by this schema, a dict or its text.
        regex: text that all of this regular expression matches, in the syntax of Rust's ``regex``.
        choice: one of these texts.
        grammar: text of this grammar, in the syntax of Lark or of GBNF.
        json_object: a JSON object, whatever is in it.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    json: str | Mapping[str, Any] | bool | None = setting(None, JsonSchema(optional=True))
    regex: str | None = setting(None, Text(optional=True))
    choice: Seq[str] | None = setting((), Texts())
    grammar: str | None = setting(None, Text(optional=True))
    json_object: bool = setting(False, Switch())

    def __post_init__(self) -> None:
        check_fields(self)
        names = [field.name for field in fields(self)]
        given = [name for name in names if getattr(self, name) not in (None, (), False)]
        if len(given) != 1:
            raise ValueError(
                f"structured_outputs must have exactly one of {', '.join(names)}, "
                f"got {', '.join(given) or 'none'}"
            )

    @property
    def form(self) -> tuple[str, Any]:
        """The name of the field that is given, and its value."""
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return next(pair for pair in given if pair[1] not in (None, (), False))

    __repr__ = changes_repr


@dataclass(frozen=True, slots=True)
class Structure(Kind):
    """`StructuredOutputsParams`, or a mapping of its fields."""

    metavar: ClassVar[str] = "JSON"
    json_type: ClassVar[Any] = dict[str, Any]

    @property
    def allowed(self) -> str:
        names = (field.name for field in fields(StructuredOutputsParams))
        return f"JSON object with one of {', '.join(names)}"

    def _check(self, name: str, value: Any) -> StructuredOutputsParams:
        if isinstance(value, StructuredOutputsParams):
            return value
        names = {field.name for field in fields(StructuredOutputsParams)}
        if not isinstance(value, Mapping) or not value.keys() <= names:
            raise ValueError(
                f"{name} must be StructuredOutputsParams{self._or_none}, or a mapping of "
                f"{', '.join(sorted(names))}, got {value!r}"
            )
        try:
            return StructuredOutputsParams(**value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _parse(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text
