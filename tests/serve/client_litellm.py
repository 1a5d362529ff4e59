"""What litellm does with a service: run in an environment of its own, with its address."""

from __future__ import annotations

import sys
from typing import Any

import litellm
from pydantic import BaseModel

QUESTION = [{"role": "user", "content": "who?"}]
LOOK = {
    "name": "look",
    "parameters": {
        "type": "object",
        "properties": {"is_far": {"type": "boolean"}},
        "required": ["is_far"],
        "additionalProperties": False,
    },
}


class Reply(BaseModel):
    is_good: bool


SHORT: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}


def place(base: str) -> dict[str, Any]:
    return {"api_base": base, "api_key": "none"}


def asking(base: str, model: str) -> dict[str, Any]:
    return place(base) | {"model": f"openai/{model}", "messages": QUESTION}


def text_of(base: str, model: str) -> str:
    text = litellm.completion(**asking(base, model), **SHORT).choices[0].message.content
    assert isinstance(text, str)
    return text


def chat(base: str, model: str) -> None:
    said = litellm.completion(**asking(base, model), **SHORT)
    assert said.usage.completion_tokens <= 8 and text_of(base, model) is not None


def parts(base: str, model: str) -> None:
    streamed = litellm.completion(**asking(base, model), **SHORT, stream=True)
    text = "".join(part.choices[0].delta.content or "" for part in streamed)
    assert text == text_of(base, model)


def tools(base: str, model: str) -> None:
    offered = [{"type": "function", "function": LOOK}]
    called = litellm.completion(
        **asking(base, model), tools=offered, tool_choice="required", seed=1
    )
    for call in called.choices[0].message.tool_calls:
        assert call.function.name == "look" and "is_far" in call.function.arguments


def schema(base: str, model: str) -> None:
    shaped = litellm.completion(**asking(base, model), response_format=Reply, seed=1)
    Reply.model_validate_json(shaped.choices[0].message.content)


def responses(base: str, model: str) -> None:
    answer = litellm.responses(
        model=f"openai/{model}", input="who?", max_output_tokens=8, temperature=0.0, **place(base)
    )
    # Of these, it asks for 16 tokens at least.
    assert answer.id and answer.output[0].content[0].text.startswith(text_of(base, model))


def completions(base: str, model: str) -> None:
    completed = litellm.text_completion(
        model=f"text-completion-openai/{model}", prompt=["once", "upon"], **SHORT, **place(base)
    )
    assert len(completed.choices) == 2


def embeddings(base: str, model: str) -> None:
    found = litellm.embedding(model=f"openai/{model}", input=["once", "upon"], **place(base))
    assert len(found.data) == 2 and len(found.data[0]["embedding"]) > 1


def main(base: str, model: str) -> None:
    for feature in (chat, parts, tools, schema, responses, completions, embeddings):
        feature(base, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
