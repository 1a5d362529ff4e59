"""Tools that a chat may call: which calls an answer may or must have, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from paged_stream.text.tool_calls import (
    READERS,
    CallFormat,
    CallReader,
    ForcedCall,
    ForcedCalls,
    PlainText,
)


class Function(BaseModel):
    """A function that a model may call. What else a client says of it is for the template."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)
    parameters: dict[str, Any] | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        return self.parameters or {"type": "object"}


class Tool(BaseModel):
    """A function, and how the client has written it: templates show that to the model."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"] = "function"
    function: Function
    _sent: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, value: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        tool = validate(value)
        tool._sent = value
        return tool

    @property
    def sent(self) -> dict[str, Any]:
        return self._sent


class FunctionName(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str


class NamedTool(BaseModel):
    """The tool that has to be called."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"] = "function"
    function: FunctionName


class ToolUse:
    """What one chat may do with its tools.

    Args:
        choice: as OpenAI's ``tool_choice``. By default a model calls what it wants to.
        has_several: whether an answer may have more than one call.

    Raises:
        ValueError: a call is asked for and there is no such tool.
    """

    def __init__(
        self,
        tools: list[Tool] | None,
        choice: Literal["none", "auto", "required"] | NamedTool | None,
        has_several: bool,
    ) -> None:
        self._functions = [tool.function for tool in tools or ()]
        self._choice = "none" if choice == "none" or not tools else "auto"
        self.num_calls = None if has_several else 1
        self._forced: Function | None = None
        if isinstance(choice, NamedTool):
            self._forced = self._find(choice.function.name)
        elif choice == "required":
            self._choice = choice
            if not self._functions:
                raise ValueError("tool_choice must be left out or 'none' without tools")

    def _find(self, name: str) -> Function:
        for function in self._functions:
            if function.name == name:
                return function
        names = ", ".join(repr(function.name) for function in self._functions)
        raise ValueError(f"tool_choice must name a tool ({names or 'there is none'}), got {name!r}")

    @property
    def is_shown(self) -> bool:
        """Whether the template is told of the tools."""
        return self._forced is not None or self._choice != "none"

    @property
    def ends_as_call(self) -> bool:
        """Whether an answer with calls ends for that reason. OpenAI's API says ``"stop"`` where a
        client has named the function."""
        return self._forced is None

    @property
    def is_read(self) -> bool:
        """Whether the model writes its calls in its own format."""
        return self._forced is None and self._choice == "auto"

    def structure(self) -> dict[str, Any] | None:
        """What the answer has to be, as ``structured_outputs``; ``None`` if that is free."""
        if self._forced is not None:
            return {"json": self._forced.schema_of_arguments}
        if self._choice != "required":
            return None
        calls = [_call_schema(number, each) for number, each in enumerate(self._functions)]
        schema = {"type": "array", "items": {"anyOf": calls}, "minItems": 1}
        return {"json": schema if self.num_calls is None else schema | {"maxItems": 1}}

    def reader(self, call_format: CallFormat | None) -> CallReader:
        """What reads an answer.

        Args:
            call_format: of the model, if `is_read`.
        """
        if self._forced is not None:
            return ForcedCall(self._forced.name)
        if self._choice == "required":
            return ForcedCalls()
        return PlainText() if call_format is None else READERS[call_format]()


def _call_schema(number: int, function: Function) -> dict[str, Any]:
    """A call in a list of calls. References within the schema of its arguments are to that schema,
    which is not the whole any more."""
    place = f"#/items/anyOf/{number}/properties/parameters"
    return {
        "type": "object",
        "properties": {
            "name": {"const": function.name},
            "parameters": _moved(function.schema_of_arguments, place),
        },
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {name: _moved(value, place) for name, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference.removeprefix("#")
    return moved
