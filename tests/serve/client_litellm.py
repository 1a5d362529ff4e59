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


def main(base: str, model: str) -> None:
    where: dict[str, Any] = {"api_base": base, "api_key": "none"}
    chat = where | {"model": f"openai/{model}", "messages": QUESTION}
    short = {"max_tokens": 8, "temperature": 0.0}
    said = litellm.completion(**chat, **short)
    text = said.choices[0].message.content
    assert isinstance(text, str) and said.usage.completion_tokens <= 8
    parts = litellm.completion(**chat, **short, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == text
    tools = [{"type": "function", "function": LOOK}]
    called = litellm.completion(**chat, tools=tools, tool_choice="required", seed=1)
    for call in called.choices[0].message.tool_calls:
        assert call.function.name == "look" and "is_far" in call.function.arguments
    shaped = litellm.completion(**chat, response_format=Reply, seed=1)
    Reply.model_validate_json(shaped.choices[0].message.content)
    answer = litellm.responses(
        model=f"openai/{model}", input="who?", max_output_tokens=8, temperature=0.0, **where
    )
    # Of these, it asks for 16 tokens at least.
    assert answer.id and answer.output[0].content[0].text.startswith(text)
    completed = litellm.text_completion(
        model=f"text-completion-openai/{model}", prompt=["once", "upon"], **short, **where
    )
    assert len(completed.choices) == 2
    vectors = litellm.embedding(model=f"openai/{model}", input=["once", "upon"], **where).data
    assert len(vectors) == 2 and len(vectors[0]["embedding"]) > 1


if __name__ == "__main__":
    main(*sys.argv[1:])
