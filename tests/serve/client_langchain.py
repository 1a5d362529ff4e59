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


def cold(base: str, model: str) -> ChatOpenAI:
    return ChatOpenAI(base_url=base, api_key="none", model=model, max_tokens=8, temperature=0.0)


def chat(base: str, model: str) -> None:
    llm = cold(base, model)
    said = llm.invoke("who?")
    assert isinstance(said.content, str) and said.usage_metadata["output_tokens"] <= 8
    assert [each.content for each in llm.batch(["who?"] * 3)] == [said.content] * 3
    with_logprobs = llm.bind(logprobs=True).invoke("who?")
    assert with_logprobs.response_metadata["logprobs"]["content"]


def parts(base: str, model: str) -> None:
    llm = cold(base, model)
    assert "".join(part.content for part in llm.stream("who?")) == llm.invoke("who?").content


def tools(base: str, model: str) -> None:
    llm = ChatOpenAI(base_url=base, api_key="none", model=model, seed=1)
    question = HumanMessage("where?")
    called = llm.bind_tools([look], tool_choice="look").invoke([question])
    [call] = called.tool_calls
    assert call["name"] == "look" and isinstance(call["args"]["is_far"], bool)
    result = ToolMessage(look.invoke(call["args"]), tool_call_id=call["id"])
    then = cold(base, model).bind_tools([look]).invoke([question, called, result])
    assert then.content is not None


def schema(base: str, model: str) -> None:
    llm = ChatOpenAI(base_url=base, api_key="none", model=model, seed=1)
    for method in ("json_schema", "function_calling"):
        reply = llm.with_structured_output(Reply, method=method).invoke("good?")
        assert isinstance(reply, Reply)


def responses(base: str, model: str) -> None:
    new = ChatOpenAI(base_url=base, api_key="none", model=model, use_responses_api=True)
    first = new.invoke("who?", max_tokens=8, temperature=0.0)
    assert first.response_metadata["id"].startswith("resp_")
    going_on = {"previous_response_id": first.response_metadata["id"], "max_tokens": 8}
    assert new.invoke("why?", **going_on).usage_metadata["input_tokens"] > 8
    streamed = list(new.stream("why?", **going_on))
    assert any(part.response_metadata.get("id", "").startswith("resp_") for part in streamed)
    called = new.bind(seed=1).bind_tools([look], tool_choice="look").invoke("where?")
    assert isinstance(called.tool_calls[0]["args"]["is_far"], bool)


def embeddings(base: str, model: str) -> None:
    vectors = OpenAIEmbeddings(
        base_url=base, api_key="none", model=model, check_embedding_ctx_length=False
    )
    one, other = vectors.embed_documents(["once", "upon"])
    assert vectors.embed_query("once") != other and len(one) == len(other) > 1


def completions(base: str, model: str) -> None:
    llm = OpenAI(base_url=base, api_key="none", model=model, max_tokens=4)
    assert isinstance(llm.invoke("once"), str)
    assert len(llm.generate(["once", "upon"]).generations) == 2


def main(base: str, model: str) -> None:
    for feature in (chat, parts, tools, schema, responses, embeddings, completions):
        feature(base, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
