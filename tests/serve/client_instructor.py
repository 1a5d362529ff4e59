"""What instructor does with a service: run in an environment of its own, with its address."""

from __future__ import annotations

import sys

import instructor
from openai import OpenAI
from pydantic import BaseModel

MODES = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA]


class Reply(BaseModel):
    is_good: bool


def main(base: str, model: str) -> None:
    question = [{"role": "user", "content": "good?"}]
    for mode in MODES:
        client = instructor.from_openai(OpenAI(base_url=base, api_key="none"), mode=mode)
        reply = client.chat.completions.create(
            model=model, messages=question, response_model=Reply, max_retries=0
        )
        assert isinstance(reply, Reply), mode


if __name__ == "__main__":
    main(*sys.argv[1:])
