"""Coroutines get what the engine would give them alone, and none can hold up or harm another."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest

from paged_stream import AsyncLLMEngine, SamplingParams
from paged_stream.engine.bell import Bell
from paged_stream.engine.mailbox import Mailbox
from tests.engine.coroutines import (
    ENDLESS,
    GREEDY,
    PROMPTS,
    comes_to_rest,
    continuation,
    held,
    in_loop,
    nothing_left,
    read,
    settle,
    take,
    until,
)


@in_loop
async def test_requests_and_streams_together_equal_each_alone(make, make_engine):
    alone = make_engine()
    want = [continuation(alone, prompt) for prompt in PROMPTS]

    async def stream_through(engine, prompt):
        async with await engine.open_stream() as stream:
            await stream.append(prompt[:2])
            await stream.append(prompt[2:])
            return await read(stream.generate(GREEDY))

    async with make() as engine:
        tasks = [read(engine.generate(prompt, GREEDY)) for prompt in PROMPTS]
        tasks += [stream_through(engine, prompt) for prompt in PROMPTS]
        assert await asyncio.gather(*tasks) == want * 2
        assert await nothing_left(engine)


@in_loop
async def test_several_completions(make, make_engine):
    params = SamplingParams(n=3, max_tokens=10, seed=5, ignore_eos=True)
    alone = make_engine()
    alone.add_request("r", "abc", params)
    want: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while alone.has_unfinished_requests():
        for delta in alone.step():
            want[delta.index] += delta.delta_token_ids
    got: dict[int, list[int]] = {0: [], 1: [], 2: []}
    engine = make(max_unread=1)
    async for delta in engine.generate("abc", params):
        got[delta.index] += delta.delta_token_ids
    assert got == want and await nothing_left(engine)


@in_loop
async def test_names_of_the_engine_are_none_that_a_request_has(make):
    async with make(max_unread=1) as engine:
        names = [f"request-{number}" for number in range(4)]
        endless = SamplingParams(max_tokens=None, ignore_eos=True)
        held = [engine.generate(PROMPTS[0], endless, request_id=name) for name in names]
        for deltas in held:
            await anext(deltas)
        assert len(await engine.score([PROMPTS[0], PROMPTS[1]])) == 2
        assert (await anext(engine.generate(PROMPTS[0]))).request_id not in names
        for deltas in held:
            await deltas.aclose()


@in_loop
async def test_scores_are_those_of_the_engine(make, make_engine):
    alone = make_engine()
    alone.intake.add_scoring("r", PROMPTS[0])
    want: list[float | None] = [None]
    while alone.has_unfinished_requests():
        for delta in alone.step():
            want += [entry.logprob for entry in delta.prompt_logprobs or ()]
    assert len(want) == len(PROMPTS[0])
    async with make(max_unread=1) as engine:
        scored = [engine.score(PROMPTS[0]), engine.score(PROMPTS[0][:1])]
        others = [read(engine.generate(prompt, GREEDY)) for prompt in PROMPTS]
        assert (await asyncio.gather(*scored, *others))[:2] == [want, [None]]
        with pytest.raises(ValueError, match="must not be empty"):
            await engine.score("")
        assert await engine.score([]) == []
        leaving = asyncio.create_task(engine.score(PROMPTS[1]))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert await nothing_left(engine)


@in_loop
async def test_embeddings_are_those_of_the_engine(make, make_engine):
    alone = make_engine()
    want = [output.outputs.embedding for output in alone.embed(PROMPTS, use_tqdm=False)]
    async with make(max_unread=1) as engine:
        embedded = engine.embed([*PROMPTS, PROMPTS[0][:1]])
        others = [read(engine.generate(prompt, GREEDY)) for prompt in PROMPTS]
        outputs = (await asyncio.gather(embedded, *others))[0]
        assert [output.prompt_token_ids for output in outputs[:-1]] == PROMPTS
        for output, expected in zip(outputs[:-1], want, strict=True):
            assert output.outputs.embedding == pytest.approx(expected, abs=1e-5)
        leaving = asyncio.create_task(engine.embed(PROMPTS[0] * 5000))
        while not (await engine.stats()).num_running:  # told between two of its many steps
            pass
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert leaving.cancelled() and await nothing_left(engine)


def test_threads_with_loops_of_their_own(make, make_engine):
    alone, engine = make_engine(), make()
    want = [continuation(alone, prompt) for prompt in PROMPTS]

    async def work():
        async def one(prompt):
            async with await engine.open_stream() as stream:
                await stream.append(prompt)
                return await read(stream.generate(GREEDY))

        return await asyncio.gather(
            *(one(prompt) for prompt in PROMPTS),
            *(read(engine.generate(prompt, GREEDY)) for prompt in PROMPTS),
        )

    with ThreadPoolExecutor(4) as threads:
        loops = [threads.submit(lambda: asyncio.run(work())) for _ in range(4)]
        assert [loop.result() for loop in loops] == [want * 2] * 4
    assert asyncio.run(nothing_left(engine))


@in_loop
async def test_a_stream_used_by_two_loops(make, make_engine):
    engine = make()
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])

    def elsewhere():
        return asyncio.run(read(stream.generate(GREEDY)))

    first = await asyncio.to_thread(elsewhere)
    second = await read(stream.generate(GREEDY))
    assert first + second == continuation(
        make_engine(), [5, 6, 7], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    )


# Leaving


@in_loop
async def test_leaving_frees_at_once(make):
    engine = make()
    prompt = list(range(2, 60))
    async for _ in engine.generate(prompt, ENDLESS):
        break
    assert await nothing_left(engine)

    async with aclosing(engine.generate(prompt, ENDLESS)) as deltas:
        await take(deltas, 3)
    assert await nothing_left(engine)

    deltas = engine.generate(prompt, ENDLESS)
    await take(deltas, 3)
    del deltas
    assert await nothing_left(engine)

    engine.generate(prompt, ENDLESS)  # never started
    deltas = engine.generate(prompt, ENDLESS)
    await deltas.aclose()
    assert await nothing_left(engine)

    task = asyncio.create_task(read(engine.generate(prompt, ENDLESS)))
    await until(engine, lambda: engine.core.scheduler.num_running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await nothing_left(engine)


@in_loop
async def test_cancelled_at_any_moment(make, make_engine):
    engine = make()
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    random.seed(0)

    async def once():
        async with await engine.open_stream() as other:
            await other.append(list(range(2, 90)))
            async with await other.fork() as child:
                await read(child.generate(ENDLESS))

    for number in range(150):
        make_one = [
            lambda: read(engine.generate([5, 6, 7], ENDLESS)),
            lambda: read(stream.generate(ENDLESS)),
            once,
        ][number % 3]
        task = asyncio.create_task(make_one())
        for _ in range(random.randrange(12)):
            await (engine.stats() if random.random() < 0.3 else asyncio.sleep(0))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await settle(engine)
    assert await engine.thread.call(lambda: not engine.core.turns)
    saved = (await stream.stats()).num_tokens
    assert saved >= 3 and len(await read(stream.generate(GREEDY))) == 10
    await stream.close()
    assert await nothing_left(engine)


@in_loop
async def test_an_abort_comes_after_its_request(make):
    engine = make()
    async with held(engine):
        early = asyncio.create_task(read(engine.generate([5, 6], ENDLESS)))
        await asyncio.sleep(0)
        early.cancel()
        with pytest.raises(asyncio.CancelledError):
            await early
    assert await nothing_left(engine)
    assert (await engine.stats()).num_steps == 0  # it was not even added


@in_loop
async def test_an_opened_stream_whose_opener_is_gone_is_closed(make):
    engine = make()
    opening, gate = threading.Event(), threading.Event()
    open_stream = engine.core.open_stream

    def slowly(*settings, **more):
        opening.set()
        gate.wait()
        return open_stream(*settings, **more)

    engine.core.open_stream = slowly
    task = asyncio.create_task(engine.open_stream())
    await asyncio.to_thread(opening.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    assert await nothing_left(engine)


def test_a_loop_that_ends_leaves_nothing(make):
    engine = make()

    async def leave_open():
        deltas = engine.generate([5, 6], ENDLESS)
        await take(deltas, 2)
        asyncio.create_task(read(engine.generate([5, 6, 7], ENDLESS)))
        await until(engine, lambda: len(engine.core.turns.requests) == 2)
        return deltas

    left = asyncio.run(leave_open())  # closes what is open
    assert asyncio.run(nothing_left(engine))
    del left


@pytest.mark.parametrize("max_unread", [1, 1000])
def test_a_loop_closed_without_care_leaves_nothing(make, max_unread):
    engine = make(max_unread=max_unread)
    loop = asyncio.new_event_loop()
    deltas = engine.generate([5, 6], ENDLESS)
    loop.run_until_complete(take(deltas, 2))
    if max_unread == 1:
        [mailbox] = engine.thread.mailboxes
        loop.run_until_complete(until(engine, lambda: mailbox.is_full))
    loop.close()

    async def others_go_on():
        assert len(await read(engine.generate([5, 6, 7], GREEDY))) == 10
        return await nothing_left(engine)

    assert asyncio.run(others_go_on())


# Names


@in_loop
async def test_a_name_in_use_is_refused_and_its_request_unharmed(make, make_engine):
    engine = make(max_unread=2)  # so it has not finished in the background
    want = continuation(make_engine(), [5, 6, 7])
    first = engine.generate([5, 6, 7], GREEDY, request_id="name")
    got = await take(first, 1)
    with pytest.raises(ValueError, match="in use"):
        await read(engine.generate([8], ENDLESS, request_id="name"))
    assert got + await read(first) == want


@in_loop
async def test_a_name_can_be_used_again_before_the_first_is_read(make, make_engine):
    engine = make()
    first = engine.generate([5, 6, 7], GREEDY, request_id="name")
    await take(first, 1)
    await until(engine, lambda: "name" not in engine.core.turns.requests)
    second = engine.generate([8, 9], ENDLESS, request_id="name")
    got = await take(second, 1)
    await first.aclose()  # must not abort the second
    assert got + await take(second, 9) == continuation(make_engine(), [8, 9])
    await second.aclose()
    assert await nothing_left(engine)


@in_loop
async def test_misuse_is_explained_and_harms_nobody(make):
    engine = make()
    with pytest.raises(ValueError, match="params must be SamplingParams"):
        await read(engine.generate("a", {"n": 1}))
    with pytest.raises(ValueError, match="prompt must not be empty"):
        await read(engine.generate(""))
    stream = await engine.open_stream()
    with pytest.raises(ValueError, match="the stream is empty"):
        await read(stream.generate())
    with pytest.raises(ValueError, match="prompt must not be empty"):
        await stream.append("")
    with pytest.raises(ValueError, match="window_size must be"):
        await engine.open_stream(window_size=0)
    await stream.close()
    await stream.close()
    for call in (stream.append("a"), stream.fork(), stream.stats(), read(stream.generate())):
        with pytest.raises(ValueError, match="closed"):
            await call
    assert await nothing_left(engine)
    for max_unread in (0, -1, 1.5, "2", None, True):
        with pytest.raises(ValueError, match="max_unread must be "):
            AsyncLLMEngine(engine.config, max_unread=max_unread)


# Slow readers


@in_loop
async def test_a_slow_reader_holds_up_only_what_it_reads(make, make_engine):
    engine = make(max_unread=4, max_num_seqs=2)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    slow, slower = stream.generate(ENDLESS), engine.generate([8, 9], ENDLESS)
    seen, seen_too = await take(slow, 1), await take(slower, 1)
    for _ in range(5):
        got = await asyncio.gather(*(read(engine.generate(p, GREEDY)) for p in PROMPTS))
        assert all(len(tokens) == 10 for tokens in got)
        unread = await engine.thread.call(lambda: [len(m._items) for m in engine.thread.mailboxes])
        assert max(unread) <= 4
    assert (await stream.stats()).num_tokens <= 3 + 1 + 4
    await stream.append([1, 2])  # does not wait for the reader
    assert seen + await take(slow, 9) == continuation(make_engine(), [5, 6, 7])
    assert seen_too + await take(slower, 9) == continuation(make_engine(), [8, 9])
    await slow.aclose()
    await slower.aclose()
    await stream.close()
    assert await nothing_left(engine)


@in_loop
async def test_an_engine_with_nothing_but_unread_turns_sleeps(make, monkeypatch):
    engine = make(max_unread=2)
    deltas = engine.generate([5, 6], ENDLESS)
    await take(deltas, 1)
    assert await comes_to_rest(engine, monkeypatch)
    assert len(await take(deltas, 20)) == 20


@in_loop
async def test_a_box_filled_while_it_is_read_wakes_the_engine():
    woken = []
    mailbox = Mailbox(2, Bell(asyncio.get_running_loop()), woken.append)

    class FilledMeanwhile(deque):
        def popleft(self):
            if len(self) == 1:
                self.append("second")  # the engine's thread; it finds the box full then
            return super().popleft()

    mailbox._items = FilledMeanwhile(["first"])
    assert await mailbox.get() == "first"
    assert woken


@pytest.mark.parametrize("max_unread", [1, 2, 3])
@in_loop
async def test_a_reader_that_keeps_up_is_never_forgotten(make, max_unread):
    engine = make(max_unread=max_unread)
    params = SamplingParams(temperature=0, max_tokens=600, ignore_eos=True)
    readers = [read(engine.generate([5 + i], params)) for i in range(3)]
    assert [len(tokens) for tokens in await asyncio.gather(*readers)] == [600] * 3


@in_loop
async def test_an_engine_with_nothing_to_do_parks(make, monkeypatch):
    engine, parked = make(park_after_seconds=0.02), threading.Event()
    park = engine.core.scheduler.park
    monkeypatch.setattr(engine.core.scheduler, "park", lambda seq_id: (park(seq_id), parked.set()))
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    await read(stream.generate(GREEDY))
    await asyncio.to_thread(parked.wait)  # without a call that would wake the engine
    assert (await engine.stats()).num_parked_streams == 1
    assert len(await read(stream.generate(GREEDY))) == 10


@in_loop
async def test_parking_at_once_does_not_keep_the_engine_busy(make, monkeypatch):
    engine = make(park_after_seconds=0)
    stream = await engine.open_stream()
    await stream.append([5, 6, 7])
    await read(stream.generate(GREEDY))
    assert await comes_to_rest(engine, monkeypatch)
    assert (await engine.stats()).num_parked_streams == 1
    far = make(park_after_seconds=float("inf"))
    stream = await far.open_stream()
    await stream.append([5, 6, 7])
    assert len(await read(stream.generate(GREEDY))) == 10
    assert await comes_to_rest(far, monkeypatch)
