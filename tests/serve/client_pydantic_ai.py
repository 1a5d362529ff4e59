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


async def main(base: str, model: str) -> None:
    provider = OpenAIProvider(base_url=base, api_key="none")
    chat = OpenAIChatModel(model, provider=provider)
    agent = Agent(chat, model_settings={"max_tokens": 8, "temperature": 0.0})
    said = (await agent.run("who?")).output
    assert isinstance(said, str)
    async with agent.run_stream("who?") as parts:
        assert await parts.get_output() == said
    new = OpenAIResponsesModel(model, provider=provider)
    answered = await agent.run("who?", model=new)
    assert answered.output == said

    for output_type in (Reply, NativeOutput(Reply)):  # by a call that is forced; by a schema
        shaped = Agent(chat, output_type=output_type, model_settings={"seed": 1})
        reply = (await shaped.run("good?")).output
        assert isinstance(reply, Reply)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
