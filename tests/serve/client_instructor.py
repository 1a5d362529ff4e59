"""What instructor does with a service: run in an environment of its own, with its address."""

from __future__ import annotations

import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Reply(BaseModel):
    is_good: bool


def ask(base: str, model: str, mode: instructor.Mode) -> None:
    client = instructor.from_openai(OpenAI(base_url=base, api_key="none"), mode=mode)
    question = [{"role": "user", "content": "good?"}]
    reply = client.chat.completions.create(
        model=model, messages=question, response_model=Reply, max_retries=0
    )
    assert isinstance(reply, Reply), mode


def tools(base: str, model: str) -> None:
    ask(base, model, instructor.Mode.TOOLS)


def schema(base: str, model: str) -> None:
    ask(base, model, instructor.Mode.JSON_SCHEMA)


def main(base: str, model: str) -> None:
    for feature in (tools, schema):
        feature(base, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
