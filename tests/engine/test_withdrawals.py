"""An append that is broken off leaves what is computed, and a rewind computes nothing that it
forgets."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.engine.coroutines import GREEDY, held, ids, in_loop, read
from tests.engine.stream_oracle import greedy, text_ids, tokens_of

LONG = text_ids(5000)


def as_if_appended(make_engine, position: int) -> list[int]:
    """What comes behind the first tokens of the text, in an engine that was never disturbed."""
    with make_engine().open_stream() as stream:
        stream.append(LONG[:position])
        return tokens_of(stream.generate(greedy(10)))


def interrupting(engine, monkeypatch, num_steps: int) -> None:
    """Let somebody press Ctrl-C after so many steps, once."""
    advance, left = engine.core.advance, [num_steps]

    def advance_or_not():
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return advance()

    monkeypatch.setattr(engine.core, "advance", advance_or_not)


@pytest.mark.parametrize("is_parked", [False, True])
def test_a_turn_without_a_step_has_done_nothing(make_engine, monkeypatch, is_parked):
    """Although it was to compute the last token once more, which sees less by now than before."""

    def scores(interrupts):
        engine = make_engine()
        stream = engine.open_stream()
        stream.append(LONG[:60])
        tokens_of(stream.generate(greedy(5)))
        stream.rewind(stream.position - 8)  # all of it is computed then
        if is_parked:
            stream.park()
        if interrupts:
            interrupting(engine, monkeypatch, 0)
            with pytest.raises(KeyboardInterrupt):
                next(stream.generate(greedy(5)))
        stream.append(LONG[100:103])
        return stream.score(LONG[200:220]), tokens_of(stream.generate(greedy(5)))

    assert scores(interrupts=True) == scores(interrupts=False)


@pytest.mark.parametrize("back", range(1, 8))
def test_a_parked_stream_is_rewound_as_any(make_engine, back):
    """Although what was appended behind it, and is not computed, pushes out a part of what is
    parked."""

    def scores(is_parked):
        stream = make_engine().open_stream()
        stream.append(LONG[:60])
        tokens_of(stream.generate(greedy(5)))
        position = stream.position
        if is_parked:
            stream.park()
        stream.append(LONG[100:106])
        stream.rewind(position + 4 - back)
        return stream.visible(), stream.score(LONG[200:220]), tokens_of(stream.generate(greedy(5)))

    assert scores(is_parked=True) == scores(is_parked=False)


@pytest.mark.parametrize("num_steps", [0, 1, 7])
def test_an_interrupted_append_leaves_what_is_computed(make_engine, monkeypatch, num_steps):
    engine = make_engine()
    stream = engine.open_stream()
    interrupting(engine, monkeypatch, num_steps)
    with pytest.raises(KeyboardInterrupt) as caught:
        stream.append(LONG)
    assert caught.value.__notes__ == [
        f"what was not computed yet is taken back: the stream is at position {stream.position}"
    ]
    assert (stream.position > 0) == (num_steps > 0) and stream.position < 32 * num_steps + 2
    if num_steps:
        assert stream.stats().num_pending_tokens == 1
        steps = engine.stats().num_steps
        found = tokens_of(stream.generate(greedy(10)))
        assert engine.stats().num_steps == steps + 10
        assert found == as_if_appended(make_engine, stream.position - 10)
    engine.core.scheduler.check_integrity()


@in_loop
async def test_a_cancelled_append_leaves_what_is_computed(make, make_engine):
    engine = make()
    stream = await engine.open_stream()
    appending = asyncio.create_task(stream.append(LONG))
    async with held(engine, when=lambda: stream.inner.position > 0):
        appending.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError) as caught:
        await appending
    position = stream.position
    assert caught.value.__notes__ == [
        f"what was not computed yet is taken back: the stream is at position {position}"
    ]
    assert position < 1000
    if position:
        assert await read(stream.generate(GREEDY)) == as_if_appended(make_engine, position)
    await engine.thread.call(engine.core.scheduler.check_integrity)


@in_loop
async def test_an_append_that_is_cancelled_before_it_begins_leaves_nothing(make):
    engine = make()
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    async with held(engine):
        appending = asyncio.create_task(stream.append(LONG))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        appending.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await appending
    assert (await stream.stats()).num_tokens == 3


@in_loop
async def test_a_cancellation_is_heard_of_once_the_stream_is_as_it_was(make):
    engine = make()
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    caught, gates = [[threading.Event() for _ in range(2)] for _ in range(2)]

    async def queued(coroutine, count):
        task = asyncio.create_task(coroutine)
        while engine.thread._calls.qsize() < count:
            await asyncio.sleep(0)
        return task

    def hold(number):
        return engine.thread.call(lambda: (caught[number].set(), gates[number].wait()))

    holding = [asyncio.create_task(hold(0))]
    await asyncio.to_thread(caught[0].wait)
    try:
        appending = await queued(stream.append(LONG), 1)
        holding.append(await queued(hold(1), 2))
        gates[0].set()
        caught[1].wait()  # in this loop's own thread, so nobody here hears that all is appended
        assert stream.position > 3
        appending.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not appending.done()
    finally:
        for gate in gates:
            gate.set()
    with pytest.raises(asyncio.CancelledError):
        await appending
    assert stream.position == (await stream.stats()).num_tokens < 1000
    await asyncio.gather(*holding)


def test_what_a_turn_has_left_pending_is_rewound_for_nothing(make_engine):
    engine = make_engine()
    stream = engine.open_stream()
    stream.append(text_ids(100, 1))
    tokens_of(stream.generate(greedy(3)))
    position, steps = stream.position, engine.stats().num_steps
    turn = stream.complete(LONG, greedy(5))
    engine.add_request("other", [5], greedy(1))  # a step in which the prompt has a part
    engine.core.errands.put(lambda core: core.end_turn(stream.inner.seq_id))
    turn.close()
    stream.inner.queue(LONG, stream.inner.encode(LONG))
    assert stream.position == position + len(LONG)
    stream.rewind(position)
    assert engine.stats().num_steps == steps
    assert stream.position == position and stream.stats().num_pending_tokens == 1
    twin = make_engine().open_stream()
    twin.append(text_ids(100, 1))
    tokens_of(twin.generate(greedy(3)))
    assert tokens_of(stream.generate(greedy(10))) == tokens_of(twin.generate(greedy(10)))


@pytest.mark.parametrize("back", [2, 5, 12, 18])
def test_a_rewind_means_the_same_whether_all_was_computed_or_not(make_engine, back):
    """Seven tokens wait, or have pushed others out of the window."""
    found = []
    for settles in (False, True):
        stream = make_engine().open_stream()
        stream.append(text_ids(100, 1))
        tokens_of(stream.generate(greedy(3)))
        stream.append(text_ids(7, 2))
        if settles:
            stream._at_rest(lambda: None)
        stream.rewind(stream.position - back)
        stream.append(text_ids(4, 3))
        found.append((tokens_of(stream.generate(greedy(10))), stream.stats().window_start))
    assert found[0] == found[1]


@in_loop
async def test_an_awaited_rewind_does_not_wait_for_what_it_forgets(make):
    engine = make()
    stream = await engine.open_stream()
    await stream.append(text_ids(50, 1))
    await read(stream.generate(GREEDY))
    position = stream.position
    async with held(engine):
        queued = asyncio.create_task(
            engine.thread.call(lambda: stream.inner.queue(LONG, stream.inner.encode(LONG)))
        )
        await asyncio.sleep(0)
        rewinding = asyncio.create_task(stream.rewind(position))
        await asyncio.sleep(0)
    await queued
    await rewinding
    assert stream.position == position
    assert (await engine.stats()).num_computed_tokens < 1000
    assert ids([delta async for delta in stream.generate(GREEDY)])
