"""Turns of a stream as events, without an engine."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("fastapi")

from paged_stream.engine.outputs import RequestDelta, RequestMetrics
from paged_stream.serve.bodies import TurnBody
from paged_stream.serve.open_stream import OpenStream
from paged_stream.serve.stream_events import StreamEvents
from paged_stream.serve.turns import Turn, whole


class Stream:
    """Generates one letter after the other, up to an error if there is one."""

    position = 0

    def __init__(self, text="abc", error=None):
        self._text, self._error = text, error

    async def generate(self, params):
        for letter in self._text:
            self.position += 1
            is_last = letter == self._text[-1] and self._error is None
            yield RequestDelta(
                request_id="",
                index=0,
                delta_text=letter,
                delta_token_ids=[ord(letter)],
                finished=is_last,
                finish_reason="stop" if is_last else None,
                stop_reason=None,
                logprobs=None,
                prompt_logprobs=None,
                metrics=RequestMetrics.of_arrival(),
            )
        if self._error is not None:
            raise self._error


def opened(**options):
    return OpenStream("s", Stream(**options), StreamEvents())


async def read(events):
    return [event async for event in events]


def kinds(events):
    return [(event["type"], event["turn"]) for event in events]


def test_a_turn_is_followed_to_its_own_end():
    """Another may have ended since it was asked for."""

    async def run():
        stream = opened()
        asked, other = Turn(stream, TurnBody()), Turn(stream, TurnBody())
        await read(other.events())
        await asked.start()
        followed = await read(asked.follow())
        assert kinds(followed[:4]) == [("delta", 2)] * 3 + [("ended", 2)]
        assert kinds(followed[4:]) == [("delta", 1)] * 3 + [("ended", 1)]

    asyncio.run(run())


def test_a_whole_turn():
    async def run():
        answer = await whole(Turn(opened(), TurnBody()).events())
        assert (answer["text"], answer["token_ids"]) == ("abc", [97, 98, 99])
        assert (answer["finish_reason"], answer["position"]) == ("stop", 3)
        assert answer["metrics"]["finished_time"] is None

    asyncio.run(run())


@pytest.mark.parametrize("text", ["", "abc"])
def test_what_breaks_a_turn_off_is_told_if_it_had_begun(text):
    async def run():
        stream = opened(text=text, error=ValueError("no more"))
        before = stream.events.last_id
        with pytest.raises(ValueError, match="no more"):
            await read(Turn(stream, TurnBody()).events())
        stream.events.end()
        told = await read(stream.events.follow(before))
        expected = ["delta"] * 3 + ["error", "ended"] if text else []
        assert [event["type"] for event in told] == expected

    asyncio.run(run())


def test_who_stops_reading_ends_the_turn():
    async def run():
        stream = opened()
        before, events = stream.events.last_id, Turn(stream, TurnBody()).events()
        await anext(events)
        await events.aclose()
        stream.events.end()
        assert kinds(await read(stream.events.follow(before))) == [("delta", 1), ("ended", 1)]

    asyncio.run(run())
