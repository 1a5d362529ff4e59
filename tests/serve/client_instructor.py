"""What instructor does with a service: run in an environment of its own, with its address."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import instructor
from instructor.core.exceptions import InstructorRetryException
from openai import OpenAI
from pydantic import BaseModel


class Reply(BaseModel):
    is_good: bool


class Anything(BaseModel):
    """What any object is: some modes let the model write one of its own."""

    is_good: bool | None = None


def ask(base: str, model: str, mode: instructor.Mode, response_model: Any = Reply) -> Any:
    client = instructor.from_openai(OpenAI(base_url=base, api_key="none"), mode=mode)
    question = [{"role": "user", "content": "good?"}]
    return client.chat.completions.create(
        model=model, messages=question, response_model=response_model, max_retries=0
    )


def try_to_read(base: str, model: str, mode: instructor.Mode, response_model: Any) -> None:
    """Ask in a mode that leaves the model free. What the tests' model says then is of no use, but
    that is for instructor to find, in an answer that it has got."""
    try:
        ask(base, model, mode, response_model)
    except InstructorRetryException as error:
        assert error.last_completion is not None, mode


def tools(base: str, model: str) -> None:
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.FUNCTIONS):
        assert isinstance(ask(base, model, mode), Reply), mode
    try_to_read(base, model, instructor.Mode.PARALLEL_TOOLS, Iterable[Reply])


def schema(base: str, model: str) -> None:
    assert isinstance(ask(base, model, instructor.Mode.JSON_SCHEMA), Reply)
    for mode in (instructor.Mode.JSON, instructor.Mode.JSON_O1):
        assert isinstance(ask(base, model, mode, Anything), Anything), mode
    try_to_read(base, model, instructor.Mode.MD_JSON, Reply)


def responses(base: str, model: str) -> None:
    for name in ("RESPONSES_TOOLS", "RESPONSES_TOOLS_WITH_INBUILT_TOOLS"):
        assert isinstance(ask(base, model, instructor.Mode[name]), Reply), name


def main(base: str, model: str) -> None:
    for feature in (tools, schema, responses):
        feature(base, model)


if __name__ == "__main__":
    main(*sys.argv[1:])
