"""What pydantic-ai does with a service: run in an environment of its own, with its address."""

from __future__ import annotations

import asyncio
import sys

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Reply(BaseModel):
    is_good: bool


def model_of(base: str, model: str) -> OpenAIChatModel:
    return OpenAIChatModel(model, provider=OpenAIProvider(base_url=base, api_key="none"))


def agent(base: str, model: str) -> Agent:
    settings = {"max_tokens": 8, "temperature": 0.0}
    return Agent(model_of(base, model), model_settings=settings)


async def chat(base: str, model: str) -> None:
    assert isinstance((await agent(base, model).run("who?")).output, str)


async def parts(base: str, model: str) -> None:
    said = (await agent(base, model).run("who?")).output
    async with agent(base, model).run_stream("who?") as streamed:
        assert await streamed.get_output() == said


async def responses(base: str, model: str) -> None:
    provider = OpenAIProvider(base_url=base, api_key="none")
    said = (await agent(base, model).run("who?")).output
    new = OpenAIResponsesModel(model, provider=provider)
    assert (await agent(base, model).run("who?", model=new)).output == said


async def tools(base: str, model: str) -> None:
    """A call that is forced gives an object."""
    asking = Agent(model_of(base, model), output_type=Reply, model_settings={"seed": 1})
    assert isinstance((await asking.run("good?")).output, Reply)


async def schema(base: str, model: str) -> None:
    shape = NativeOutput(Reply)
    asking = Agent(model_of(base, model), output_type=shape, model_settings={"seed": 1})
    assert isinstance((await asking.run("good?")).output, Reply)


async def main(base: str, model: str) -> None:
    for feature in (chat, parts, responses, tools, schema):
        await feature(base, model)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
