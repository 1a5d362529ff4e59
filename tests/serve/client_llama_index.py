"""What llama-index does with a service: run in an environment of its own, with its address."""

from __future__ import annotations

import sys
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Reply(BaseModel):
    """A reply."""

    is_good: bool


def look(is_far: bool) -> str:
    """Look for something."""
    return "5"


SHORT: dict[str, Any] = {"max_tokens": 8, "temperature": 0.0}
QUESTION = [ChatMessage(role="user", content="who?")]


def place(base: str) -> dict[str, Any]:
    return {"api_base": base, "api_key": "none"}


def cold(base: str, model: str) -> OpenAILike:
    return OpenAILike(model=model, is_chat_model=True, **SHORT, **place(base))


def able(base: str, model: str) -> OpenAILike:
    return OpenAILike(
        model=model,
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=1.0,  # cold, a model without training may write spaces in its JSON for ever
        additional_kwargs={"seed": 1},
        **place(base),
    )


def chat(base: str, model: str) -> None:
    said = cold(base, model).chat(QUESTION).message.content
    assert isinstance(said, str) and cold(base, model).complete("who?").text == said


def parts(base: str, model: str) -> None:
    llm = cold(base, model)
    text = "".join(part.delta or "" for part in llm.stream_chat(QUESTION))
    assert text == llm.chat(QUESTION).message.content


def tools(base: str, model: str) -> None:
    llm, tool = able(base, model), FunctionTool.from_defaults(look)
    called = llm.chat_with_tools([tool], user_msg="where?", tool_required=True)
    for call in llm.get_tool_calls_from_response(called):
        assert call.tool_name == "look" and isinstance(call.tool_kwargs["is_far"], bool)


def schema(base: str, model: str) -> None:
    reply = able(base, model).structured_predict(Reply, PromptTemplate("good?"))
    assert isinstance(reply, Reply)


def completions(base: str, model: str) -> None:
    plain = OpenAILike(model=model, is_chat_model=False, **SHORT, **place(base))
    assert isinstance(plain.complete("once").text, str)


def embeddings(base: str, model: str) -> None:
    embedding = OpenAILikeEmbedding(model_name=model, **place(base))
    first, second = embedding.get_text_embedding_batch(["once", "upon"])
    assert len(first) == len(second) > 1 and first != second


def main(base: str, model: str) -> None:
    for feature in (chat, parts, tools, schema, completions, embeddings):
        feature(base, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
