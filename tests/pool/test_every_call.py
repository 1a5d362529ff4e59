"""Whatever happens to any one call between a pool and its replicas, no replica is lost for it, the
stream goes on with the right history, and nothing is left behind."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

pytest.importorskip("ray")

from paged_stream import EngineConfig, LLMEngine, SamplingParams
from paged_stream.pool.async_ray_llm import AsyncRayLLM
from tests.pool.local_ray import FAULTS

SETTINGS = {
    "num_sink_tokens": 4,
    "window_size": 200,
    "block_size": 8,
    "max_num_batched_tokens": 16,
    "dtype": "float32",
    "kv_cache_memory_bytes": 4 << 20,
    "num_threads": 1,
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
BEFORE = list(range(2, 42))
MORE = list(range(50, 90))


async def read(deltas):
    async with aclosing(deltas):
        return [token_id async for delta in deltas for token_id in delta.delta_token_ids]


async def fork(pool, stream):
    async with await stream.fork() as child:
        await read(child.generate(GREEDY))


async def load(pool, stream):
    async with await pool.load_stream(await stream.save_bytes()) as copy:
        await copy.append(MORE)


async def open_stream(pool, stream):
    async with await pool.open_stream(pin=BEFORE[:5]) as other:
        await other.append(MORE)


# What is done, and the same with a stream of one engine.
OPERATIONS = {
    "append": (lambda pool, s: s.append(MORE), lambda s: s.append(MORE)),
    "generate": (lambda pool, s: read(s.generate(GREEDY)), lambda s: list(s.generate(GREEDY))),
    "complete": (
        lambda pool, s: read(s.complete(MORE, GREEDY)),
        lambda s: list(s.complete(MORE, GREEDY)),
    ),
    "chat": (lambda pool, s: read(s.chat("b", GREEDY)), lambda s: list(s.chat("b", GREEDY))),
    "score": (lambda pool, s: s.score(MORE), lambda s: s.append(MORE)),
    "rewind": (lambda pool, s: s.rewind(30), lambda s: s.rewind(30)),
    "cut": (lambda pool, s: s.cut(10, 20), lambda s: s.cut(10, 20)),
    "park": (lambda pool, s: s.park(), lambda s: None),
    "stats": (lambda pool, s: s.stats(), lambda s: None),
    "fork": (fork, lambda s: None),
    "load": (load, lambda s: None),
    "open": (open_stream, lambda s: None),
    "request": (lambda pool, s: read(pool.generate(MORE, GREEDY)), lambda s: None),
    "score a prompt": (lambda pool, s: pool.score(MORE), lambda s: None),
    "embed a prompt": (lambda pool, s: pool.embed(MORE), lambda s: None),
    "encode": (lambda pool, s: pool.encode([MORE]), lambda s: None),
}


@pytest.fixture(scope="module")
def engine(folder):
    with LLMEngine(EngineConfig(model=str(folder), **SETTINGS)) as engine:
        yield engine


def turns_from(engine, position, apply):
    """Two turns of a stream that stands at this position, in the midst of what is done or behind
    it."""
    with engine.open_stream() as stream:
        stream.append(BEFORE)
        apply(stream)
        if position < stream.position:
            stream.rewind(position)
        assert position == stream.position
        return [[t for d in stream.generate(GREEDY) for t in d.delta_token_ids] for _ in range(2)]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_call(local_ray, folder, engine, name):
    operation, apply = OPERATIONS[name]

    async def attempt(pool, number, fault):
        """Returns how many calls were made."""
        async with await pool.open_stream() as stream:
            await stream.append(BEFORE)
            task = asyncio.ensure_future(operation(pool, stream))
            local_ray.arm(number, fault, task.cancel)
            await asyncio.wait([task])
            methods = list(local_ray.methods)
            local_ray.arm(None, None, None)
            turns = [await read(stream.generate(GREEDY))]
            start = stream.position - len(turns[0])
            await stream._home.leave(saves=False)  # what comes is from the journal
            turns.append(await read(stream.generate(GREEDY)))
            expected = []
            if fault is None or not fault.startswith("cancel"):
                assert task.exception() is None  # it was done again
            elif start == len(BEFORE):
                expected = [turns_from(engine, start, lambda stream: None)]  # it was not done
            if turns not in expected:
                assert turns == turns_from(engine, start, apply), methods
        return len(methods)

    async def all_attempts():
        async with AsyncRayLLM(
            str(folder), num_replicas=2, save_every_tokens=16, **SETTINGS
        ) as pool:
            num_calls = await attempt(pool, None, None)
            assert num_calls
            for number in range(num_calls):
                for fault in FAULTS:
                    await attempt(pool, number, fault)
                    await nothing_is_left(pool)
            assert (await pool.stats()).num_lost_replicas == 0

    async def nothing_is_left(pool):
        async with asyncio.timeout(60):
            for actor in local_ray.actors:
                while actor._streams or actor._turns or actor._requests:
                    await asyncio.sleep(0)
                while (await actor.stats()).num_running:
                    await asyncio.sleep(0)
        placement = pool._placement
        assert not placement.open_streams
        for each in placement.replicas.replicas:
            assert (each.load, each.streams) == (0, set())

    asyncio.run(all_attempts())


CUT = {"on_rewrite": "cut"}
LOOKS_BACK = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content if m.role == 'user' else "
    "m.content.split('/')[-1] }}</s>{% endfor %}<assistant>"
)


def test_a_chat_that_cuts_is_done_once_and_as_a_whole(local_ray, folder, engine):
    """Whatever call of it is not answered. What follows is from the journal."""
    told: list[tuple[int, int]] = []

    async def attempt(pool, number, fault):
        told.clear()
        async with await pool.open_stream(
            chat_template=LOOKS_BACK, window_size=50, on_evict=lambda *span: told.append(span)
        ) as stream:
            await read(stream.chat("a", GREEDY))
            await stream.append("x/y")
            local_ray.arm(number, fault, lambda: None)
            said = []
            async for delta in stream.chat("b" * 30, GREEDY, **CUT):
                assert delta.template_rewrote
                said += delta.delta_token_ids
            num_calls = len(local_ray.methods)
            local_ray.arm(None, None, None)
            await stream._home.leave(saves=False)
            said += await read(stream.chat("c", GREEDY, **CUT))
            return num_calls, said, await stream.visible()

    with engine.open_stream(
        chat_template=LOOKS_BACK, window_size=50, on_evict=lambda *span: spans.append(span)
    ) as stream:
        spans: list[tuple[int, int]] = []
        list(stream.chat("a", GREEDY))
        stream.append("x/y")
        turns = [*stream.chat("b" * 30, GREEDY, **CUT), *stream.chat("c", GREEDY, **CUT)]
        expected = [token_id for delta in turns for token_id in delta.delta_token_ids]
        visible = stream.visible()
    positions = [position for span in spans for position in range(*span)]

    async def all_attempts():
        async with AsyncRayLLM(
            str(folder), num_replicas=2, save_every_tokens=16, **SETTINGS
        ) as pool:
            num_calls, *found = await attempt(pool, None, None)
            assert found == [expected, visible]
            for number in range(num_calls):
                for fault in ("not done", "no answer"):
                    _, *found = await attempt(pool, number, fault)
                    assert found == [expected, visible]
                    assert [at for span in told for at in range(*span)] == positions

    asyncio.run(all_attempts())
