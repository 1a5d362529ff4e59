"""What langchain-openai does with a service: run in an environment of its own, with its address."""

from __future__ import annotations

import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Reply(BaseModel):
    """A reply."""

    is_good: bool


@tool
def look(is_far: bool) -> str:
    """Look for something."""
    return "5"


def main(base: str, model: str) -> None:
    llm = ChatOpenAI(base_url=base, api_key="none", model=model, max_tokens=8, temperature=0.0)
    said = llm.invoke("who?")
    assert isinstance(said.content, str) and said.usage_metadata["output_tokens"] <= 8
    assert "".join(part.content for part in llm.stream("who?")) == said.content
    assert [each.content for each in llm.batch(["who?"] * 3)] == [said.content] * 3
    with_logprobs = llm.bind(logprobs=True).invoke("who?")
    assert with_logprobs.response_metadata["logprobs"]["content"]

    chat = ChatOpenAI(base_url=base, api_key="none", model=model, seed=1)
    with_tools = chat.bind_tools([look], tool_choice="look")
    question = HumanMessage("where?")
    called = with_tools.invoke([question])
    [call] = called.tool_calls
    assert call["name"] == "look" and isinstance(call["args"]["is_far"], bool)
    result = ToolMessage(look.invoke(call["args"]), tool_call_id=call["id"])
    assert llm.bind_tools([look]).invoke([question, called, result]).content is not None
    for method in ("json_schema", "function_calling"):
        reply = chat.with_structured_output(Reply, method=method).invoke("good?")
        assert isinstance(reply, Reply)

    new = ChatOpenAI(base_url=base, api_key="none", model=model, use_responses_api=True)
    first = new.invoke("who?", max_tokens=8, temperature=0.0)
    assert first.response_metadata["id"].startswith("resp_")
    going_on = {"previous_response_id": first.response_metadata["id"], "max_tokens": 8}
    assert new.invoke("why?", **going_on).usage_metadata["input_tokens"] > 8
    parts = list(new.stream("why?", **going_on))
    assert any(part.response_metadata.get("id", "").startswith("resp_") for part in parts)
    called = new.bind(seed=1).bind_tools([look], tool_choice="look").invoke([question])
    assert isinstance(called.tool_calls[0]["args"]["is_far"], bool)

    vectors = OpenAIEmbeddings(
        base_url=base, api_key="none", model=model, check_embedding_ctx_length=False
    )
    one, other = vectors.embed_documents(["once", "upon"])
    assert vectors.embed_query("once") != other and len(one) == len(other) > 1

    completion = OpenAI(base_url=base, api_key="none", model=model, max_tokens=4)
    assert isinstance(completion.invoke("once"), str)
    assert len(completion.generate(["once", "upon"]).generations) == 2


if __name__ == "__main__":
    main(*sys.argv[1:])
