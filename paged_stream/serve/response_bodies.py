"""What OpenAI's clients send to ``/v1/responses``. Fields that are not known are refused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from paged_stream.serve.bodies import Writing
from paged_stream.serve.openai_bodies import Shaped, checked_top_logprobs
from paged_stream.serve.tools import FunctionName, NamedTool, Tool, ToolUse

_LOGPROBS = "message.output_text.logprobs"


class TextFormat(BaseModel):
    """What the text of an answer has to be. Its name and ``strict`` change nothing: every answer is
    valid by the schema."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"]
    content: dict[str, Any] | None = Field(None, alias="schema")

    def structure(self) -> dict[str, Any] | None:
        """The same as ``structured_outputs``."""
        if self.type == "json_schema":
            if self.content is None:
                raise ValueError("text.format must have a schema if its type is json_schema")
            return {"json": self.content}
        return {"json_object": True} if self.type == "json_object" else None


class TextConfig(BaseModel):
    """How the text of an answer is. How much there is of it is for the model to say."""

    model_config = ConfigDict(extra="forbid")

    format: TextFormat | None = None
    verbosity: Any = None


class FunctionTool(BaseModel):
    """A function that the model may call. What else a client says of it is for the template."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    name: str = Field(min_length=1)

    def tool(self) -> Tool:
        """The same as chats have it."""
        function = self.model_dump(exclude={"type"}, exclude_none=True)
        return Tool.model_validate({"type": "function", "function": function})


class FunctionChoice(BaseModel):
    """The function that has to be called."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    name: str


class ConversationName(BaseModel):
    """A conversation by its id."""

    id: str


class EventOptions(BaseModel):
    """Padding against eavesdroppers is not offered, so asking for none is no mistake."""

    model_config = ConfigDict(extra="forbid")

    include_obfuscation: Literal[False] | None = None


class ResponseBody(Shaped, Writing):
    """The body of ``/v1/responses``."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationName | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    max_output_tokens: int | None = None
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = None  # type: ignore[assignment]
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    stream_options: EventOptions | None = None
    background: bool | None = None
    # Accepted without effect: how long the model thinks is for its template, a window needs no
    # truncation, and there are no tools that this server calls.
    reasoning: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    max_tool_calls: int | None = None

    @property
    def is_chat(self) -> bool:
        return True

    def given(self) -> dict[str, Any]:
        most = self.max_output_tokens
        return super().given() | ({} if most is None else {"max_tokens": most})

    @property
    def conversation_id(self) -> str | None:
        """The conversation that the answer belongs to.

        Raises:
            ValueError: the request goes on from a response, too.
        """
        if self.conversation is None:
            return None
        if self.previous_response_id is not None:
            raise ValueError("previous_response_id and conversation exclude each other")
        return self.conversation if isinstance(self.conversation, str) else self.conversation.id

    def check_background(self) -> None:
        """Refuse what nobody could ask for later.

        Raises:
            ValueError: the answer is to go on by itself, and not to be kept.
        """
        if self.background and self.store is False:
            raise ValueError("background needs store: true, since the answer is asked for later")

    def tool_use(self) -> ToolUse:
        """What the answer may do with the tools.

        Raises:
            ValueError: as `ToolUse`.
        """
        choice = self.tool_choice
        if isinstance(choice, FunctionChoice):
            named: Any = NamedTool(function=FunctionName(name=choice.name))
        else:
            named = choice
        tools = [each.tool() for each in self.tools or ()]
        return ToolUse(tools, named, self.parallel_tool_calls is not False)

    def writing(self) -> dict[str, Any]:
        """What is given of `WritingOptions`."""
        tools = [each.tool().sent for each in self.tools or () if self.tool_use().is_shown]
        options = {
            "chat_template": self.chat_template,
            "chat_template_kwargs": self.chat_template_kwargs,
            "tools": tools or None,
        }
        return {name: value for name, value in options.items() if value is not None}

    def structure(self) -> dict[str, Any] | None:
        if forced := self.tool_use().structure():
            return forced
        return (
            None if self.text is None or self.text.format is None else self.text.format.structure()
        )

    @property
    def _structure_field(self) -> str:
        return "tool_choice" if self.tool_use().structure() else "text.format"

    @property
    def num_logprobs(self) -> int | None:
        if _LOGPROBS not in (self.include or ()) and self.top_logprobs is None:
            return None
        return checked_top_logprobs(self.top_logprobs)
