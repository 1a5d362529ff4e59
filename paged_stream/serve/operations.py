"""What can be done to a stream by name, as `AsyncStreamApi` describes it: the methods that take
nothing but JSON and return at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from paged_stream.engine.api import AsyncStreamApi, OnEvict
from paged_stream.serve.bodies import body_of
from paged_stream.serve.errors import NoRoomError
from paged_stream.serve.open_stream import OpenStream

_METHODS: tuple[Callable[..., Any], ...] = (
    AsyncStreamApi.append,
    AsyncStreamApi.score,
    AsyncStreamApi.cut,
    AsyncStreamApi.rewind,
    AsyncStreamApi.park,
    AsyncStreamApi.end_turn,
)
# The body that each of them has.
OPERATIONS: dict[str, type[BaseModel]] = {each.__name__: body_of(each) for each in _METHODS}


async def operate(opened: OpenStream, name: str, body: BaseModel) -> dict[str, Any]:
    """Do something to a stream, and tell those who follow it.

    Returns:
        Where the stream is then, and what the method returned, under ``scores``.

    Raises:
        ValueError: as the method.
        NoRoomError: the stream is parked and cannot come back now.
    """
    arguments = body.model_dump()
    try:
        result = await getattr(opened.stream, name)(**arguments)
    except RuntimeError as error:
        raise as_no_room(error) from error
    position = opened.stream.position
    spans = {each: value for each, value in arguments.items() if isinstance(value, int)}
    opened.events.add(name, **spans | {"position": position})
    told = {"id": opened.id, "position": position}
    return told if result is None else told | {"scores": result}


async def fork(opened: OpenStream, on_evict: OnEvict) -> AsyncStreamApi:
    """Fork a stream.

    Raises:
        ValueError: as `AsyncStreamApi.fork`.
        NoRoomError: the stream is parked and cannot come back now.
    """
    try:
        return await opened.stream.fork(on_evict=on_evict)
    except RuntimeError as error:
        raise as_no_room(error) from error


def as_no_room(error: RuntimeError) -> Exception:
    """What the contract says of a stream that cannot come back has no type of its own."""
    return NoRoomError(str(error)) if type(error) is RuntimeError else error
