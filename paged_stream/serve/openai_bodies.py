"""What OpenAI's clients send, and vLLM's extras under its names. Fields that are not known are
refused."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, create_model

from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.structured_outputs import StructuredOutputsParams
from paged_stream.serve.bodies import Chat, Sampling, TokenIds
from paged_stream.serve.tools import NamedTool, Tool, ToolUse

_MAX_TOP_LOGPROBS = 20  # OpenAI's limit
# What a client may say and a server with one model of its own has no use for.
_WITHOUT_EFFECT = (
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
_NO_EFFECT: dict[str, Any] = dict.fromkeys(_WITHOUT_EFFECT, (Any, None))
_Ignored = create_model("_Ignored", __config__=ConfigDict(extra="forbid"), **_NO_EFFECT)

Prompts: TypeAlias = str | list[str] | TokenIds | list[TokenIds]


def plain_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates expect them. To them, a developer is the system. Many join the content
    to other text, so there must be some where OpenAI's API has none beside calls of tools."""
    return [_plain(message) for message in messages]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    plain = dict(message)
    if plain.get("role") == "developer":
        plain["role"] = "system"
    if plain.get("tool_calls") and plain.get("content") is None:
        plain["content"] = ""
    return plain


def checked_top_logprobs(number: int | None) -> int:
    """How many of the most likely tokens an answer tells of; none by default.

    Raises:
        ValueError: that is beyond OpenAI's limit.
    """
    if number is not None and not 0 <= number <= _MAX_TOP_LOGPROBS:
        raise ValueError(f"top_logprobs must be in [0, {_MAX_TOP_LOGPROBS}], got {number}")
    return number or 0


def prompt_list(prompts: Prompts) -> list[str | list[int]]:
    """One or several prompts, as a list."""
    if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int):
        return list(prompts)
    return [prompts]  # type: ignore[list-item]


class StreamOptions(BaseModel):
    """What comes beside the parts of an answer. Padding against eavesdroppers is not offered, so
    asking for none is no mistake."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] | None = None


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


class Shaped(_Ignored, Sampling):  # type: ignore[valid-type, misc]
    """What all requests of OpenAI's API have in common: something says what the answer has to be,
    and whether its log-probabilities are told."""

    model: str | None = None

    def params(self) -> SamplingParams:
        params = super().params()
        structure = self.structure()
        if structure is not None:
            if params.structured_outputs is not None:
                raise ValueError(
                    f"{self._structure_field} and structured_outputs exclude each other"
                )
            params = replace(params, structured_outputs=StructuredOutputsParams(**structure))
        num_logprobs = self.num_logprobs
        return params if num_logprobs is None else replace(params, logprobs=num_logprobs)

    @abstractmethod
    def structure(self) -> dict[str, Any] | None:
        """What the answer has to be, as ``structured_outputs``."""

    @property
    @abstractmethod
    def _structure_field(self) -> str:
        """The field that `structure` comes from."""

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """As ``logprobs`` of `SamplingParams`."""


class Stateless(Shaped):
    """The fields that both kinds of requests have that leave nothing behind."""

    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    priority: int = 0
    return_token_ids: bool | None = None

    def structure(self) -> dict[str, Any] | None:
        return None if self.response_format is None else self.response_format.structure()

    @property
    def _structure_field(self) -> str:
        return "response_format"


class Completion(Stateless):
    """The body of ``/v1/completions``."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: int | Literal[False] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """As `prompt_list`."""
        return prompt_list(self.prompt)

    @property
    def only_scores(self) -> bool:
        """Whether nothing is to be generated: the prompt comes back with its log-probabilities."""
        return bool(self.echo) and self.max_tokens == 0

    def given(self) -> dict[str, Any]:
        # An engine always generates something; here, that is left out of the answer.
        return super().given() | ({"max_tokens": 1} if self.only_scores else {})

    def params(self) -> SamplingParams:
        params = super().params()
        if self.echo and params.logprobs is not None:
            return replace(params, prompt_logprobs=params.logprobs)
        return params

    @property
    def num_logprobs(self) -> int | None:
        return None if self.logprobs is False else self.logprobs


class ChatCompletion(Stateless, Chat):
    """The body of ``/v1/chat/completions``."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None  # the newer name of max_tokens
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None  # type: ignore[assignment]
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None

    @property
    def is_chat(self) -> bool:
        return True

    def given(self) -> dict[str, Any]:
        most = self.max_completion_tokens
        return super().given() | ({} if most is None else {"max_tokens": most})

    def tool_use(self) -> ToolUse:
        """What the answer may do with the tools.

        Raises:
            ValueError: as `ToolUse`.
        """
        return ToolUse(self.tools, self.tool_choice, self.parallel_tool_calls is not False)

    def structure(self) -> dict[str, Any] | None:
        return self.tool_use().structure() or super().structure()

    @property
    def _structure_field(self) -> str:
        return "tool_choice" if self.tool_use().structure() else "response_format"

    @property
    def num_logprobs(self) -> int | None:
        if not self.logprobs:
            if self.top_logprobs is not None:
                raise ValueError("top_logprobs needs logprobs: true")
            return None
        return checked_top_logprobs(self.top_logprobs)

    def settings_with(self, use: ToolUse) -> dict[str, Any]:
        """The arguments of ``chat``."""
        tools = [each.sent for each in self.tools or () if use.is_shown]
        return {**self.settings(), "tools": tools or None}


class Embedding(_Ignored):  # type: ignore[valid-type, misc]
    """The body of ``/v1/embeddings``."""

    input: Prompts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """As `prompt_list`.

        Raises:
            ValueError: shorter embeddings are asked for.
        """
        if self.dimensions is not None:
            raise ValueError(
                f"dimensions must be left out, got {self.dimensions}: the first numbers of an "
                "embedding stand for nothing by themselves in a model that was not trained for it"
            )
        return prompt_list(self.input)
