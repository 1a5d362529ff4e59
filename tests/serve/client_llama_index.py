"""What llama-index does with a service: run in an environment of its own, with its address."""

from __future__ import annotations

import sys

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


def main(base: str, model: str) -> None:
    where = {"api_base": base, "api_key": "none"}
    short = {"max_tokens": 8, "temperature": 0.0}
    llm = OpenAILike(model=model, is_chat_model=True, **short, **where)
    question = [ChatMessage(role="user", content="who?")]
    said = llm.chat(question).message.content
    assert isinstance(said, str)
    assert "".join(part.delta or "" for part in llm.stream_chat(question)) == said
    assert llm.complete("who?").text == said

    able = OpenAILike(
        model=model,
        is_chat_model=True,
        is_function_calling_model=True,
        temperature=1.0,  # cold, a model without training may write spaces in its JSON for ever
        additional_kwargs={"seed": 1},
        **where,
    )
    tool = FunctionTool.from_defaults(look)
    called = able.chat_with_tools([tool], user_msg="where?", tool_required=True)
    for call in able.get_tool_calls_from_response(called):
        assert call.tool_name == "look" and isinstance(call.tool_kwargs["is_far"], bool)
    reply = able.structured_predict(Reply, PromptTemplate("good?"))
    assert isinstance(reply, Reply)

    plain = OpenAILike(model=model, is_chat_model=False, **short, **where)
    assert isinstance(plain.complete("once").text, str)
    embedding = OpenAILikeEmbedding(model_name=model, **where)
    first, second = embedding.get_text_embedding_batch(["once", "upon"])
    assert len(first) == len(second) > 1 and first != second


if __name__ == "__main__":
    main(*sys.argv[1:])
