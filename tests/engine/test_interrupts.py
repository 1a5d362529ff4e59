"""An exception that comes from outside ends a turn, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading

import pytest

from benchmarks import interrupts
from benchmarks.bench_stream import tiny_model
from paged_stream import SamplingParams
from paged_stream.engine import lifetime
from tests.engine.coroutines import ENDLESS, GREEDY, PROMPTS, continuation, ids, in_loop, read


@pytest.fixture
def handlers():
    before = [(name, signal.getsignal(name)) for name in (signal.SIGINT, signal.SIGALRM)]
    hook, interval = sys.unraisablehook, sys.getswitchinterval()
    yield
    sys.unraisablehook = hook
    sys.setswitchinterval(interval)
    for name, handler in before:
        signal.signal(name, handler)


# Not the engine of coroutines: an interrupt within asyncio itself may leave a task for ever, and
# with it, once in thousands, a stream that nobody has got. Cancelled tasks are in test_chaos.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["sync", pytest.param("pool", marks=pytest.mark.ray)])
def test_at_random_moments(name, tmp_path, handlers, request):
    if name == "pool":
        request.getfixturevalue("ray")
    tiny_model(tmp_path)
    row = interrupts.run(name, str(tmp_path), 100, 0)
    assert row["interrupts"] >= 100 and len(row["methods"]) > 10


def interrupting(engine, monkeypatch, when):
    """Let the thread that waits be interrupted as soon as the engine's thread is within a step."""
    execute, main = engine.core.executor.execute, threading.main_thread().ident

    def executing(output):
        result = execute(output)
        if when():
            signal.pthread_kill(main, signal.SIGINT)
        return result

    monkeypatch.setattr(engine.core.executor, "execute", executing)


def test_deltas_of_an_interrupted_step_come_with_the_next(make_engine, monkeypatch):
    engine, tokens, count = make_engine(), [], 0
    expected = continuation(engine, PROMPTS[5])
    interrupting(engine, monkeypatch, lambda: True)
    engine.add_request("a", PROMPTS[5], GREEDY)
    while engine.has_unfinished_requests():
        try:
            tokens += ids(engine.step())
        except KeyboardInterrupt:
            count += 1
    assert count and tokens == expected


def test_an_interrupted_turn_is_over_and_its_tokens_stay(make_engine, monkeypatch):
    engine = make_engine()
    expected = continuation(engine, PROMPTS[5])
    stream, seen = engine.open_stream(), []
    stream.append(PROMPTS[5])
    interrupting(engine, monkeypatch, lambda: len(seen) == 3)
    with pytest.raises(KeyboardInterrupt):
        for delta in stream.generate(ENDLESS):
            seen += delta.delta_token_ids
    seen.append(None)
    assert not stream.is_generating
    count = stream.position - len(PROMPTS[5])
    rest = ids(stream.generate(SamplingParams(temperature=0, max_tokens=10 - count)))
    assert seen[:3] + expected[3:count] + rest == expected
    stream.close()
    assert engine.stats().num_used_blocks == 0


def test_requests_of_an_interrupted_call_are_gone(make_engine, monkeypatch):
    engine, interrupted = make_engine(), [True]
    expected = continuation(engine, PROMPTS[5])
    interrupting(engine, monkeypatch, lambda: interrupted and interrupted.pop())
    with pytest.raises(KeyboardInterrupt):
        engine.generate([PROMPTS[5]] * 3, ENDLESS, request_ids=["a", "b", "c"], use_tqdm=False)
    assert not engine.core.turns and not engine.has_unfinished_requests()
    [output] = engine.generate([PROMPTS[5]], GREEDY, request_ids="a", use_tqdm=False)
    assert output.outputs[0].token_ids == expected


def test_an_engine_that_on_evict_calls_says_so(make_engine, caplog):
    engine, errors = make_engine(window_size=8), []

    def on_evict(start, end):
        for use in (lambda: stream.position, engine.stats, engine.step, engine.close):
            with pytest.raises(RuntimeError, match="on_evict") as error:
                use()
            errors.append(error)
        raise SystemExit

    stream = engine.open_stream(on_evict=on_evict)
    stream.append(PROMPTS[5])
    with caplog.at_level(logging.CRITICAL):
        tokens = ids(stream.generate(GREEDY))
    assert errors and len(tokens) == 10


@in_loop
async def test_an_asynchronous_engine_that_on_evict_calls_says_so(make):
    engine, errors = make(window_size=8), []

    def on_evict(start, end):
        with pytest.raises(RuntimeError, match="on_evict"):
            asyncio.run(engine.stats())
        errors.append(True)

    stream = await engine.open_stream(on_evict=on_evict)
    await stream.append(PROMPTS[5])
    assert len(await read(stream.generate(GREEDY))) == 10
    assert errors


def test_several_threads_may_use_one_engine(make_engine):
    engine = make_engine()
    expected = [continuation(engine, prompt) for prompt in PROMPTS[2:6]]
    answers: dict[int, list[int]] = {}

    def answer(number):
        [output] = engine.generate([PROMPTS[number + 2]], GREEDY, use_tqdm=False)
        with engine.open_stream() as stream:
            stream.append(PROMPTS[number + 2])
            stream.park()
            answers[number] = ids(stream.generate(GREEDY))
        assert answers[number] == output.outputs[0].token_ids

    threads = [threading.Thread(target=answer, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(4)] == expected


def test_who_is_interrupted_in_native_code_is_not_waited_for_at_exit():
    """Nor anybody who sleeps because the interpreter ends."""

    @lifetime.finish_before_exit
    def native():
        inside.set()
        leave.wait()
        raise KeyboardInterrupt

    def run():
        with pytest.raises(KeyboardInterrupt):
            native()
        left.set()
        stay.wait()

    inside, leave, left, stay = (threading.Event() for _ in range(4))
    thread = threading.Thread(target=run)
    thread.start()

    def is_inside():  # other threads may be there, of engines that other tests have left
        return lifetime._is_inside((thread.ident, sys._current_frames()[thread.ident]))

    inside.wait()
    assert is_inside()
    leave.set(), left.wait()
    assert not is_inside()
    stay.set(), thread.join()
