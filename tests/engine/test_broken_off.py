"""A change that breaks off in the middle ends its engine with an error: nothing that is half done
computes another token, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

import paged_stream.scheduler as scheduler
from paged_stream import EngineStoppedError
from tests.engine.coroutines import ENDLESS, in_loop
from tests.engine.stream_oracle import greedy, text_ids, tokens_of

SCHEDULER = str(Path(scheduler.__file__).parent)
CHANGES = {
    "append": lambda engine, stream: stream.append([5, 6, 7]),
    "close": lambda engine, stream: stream.close(),
    "cut": lambda engine, stream: stream.cut(26, 30),
    "fork": lambda engine, stream: stream.fork(),
    "open": lambda engine, stream: engine.open_stream(),
    "park": lambda engine, stream: stream.park(),
    "rewind": lambda engine, stream: stream.rewind(30),
    "save": lambda engine, stream: stream.save_bytes(),
}


class BreakOff:
    """A trace function that raises an error at one line of the scheduler."""

    def __init__(self, error: BaseException, line: int) -> None:
        self.error = error
        self.lines_left = line

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename.startswith(SCHEDULER):
            return self._trace_line

    def _trace_line(self, frame, event, argument):
        if event == "line":
            self.lines_left -= 1
            if self.lines_left == 0:
                raise self.error
        return self._trace_line


def opened(engine, seed):
    stream = engine.open_stream()
    stream.append(text_ids(40, seed))
    return stream


@pytest.mark.parametrize("error", [MemoryError, AssertionError])
@pytest.mark.parametrize("change", CHANGES)
def test_the_engine_ends_wherever_a_change_breaks_off(make_engine, change, error):
    line = 1
    while True:
        with make_engine() as engine:
            stream, other = opened(engine, 1), opened(engine, 2)
            other.fork()  # blocks that are shared
            stream.fork()
            break_off = BreakOff(error(), line)
            stream.caller.call(lambda to=break_off: sys.settrace(to))
            try:
                CHANGES[change](engine, stream)
            except (error, EngineStoppedError):
                pass
            if break_off.lines_left > 0:  # the change has fewer lines
                break
            with pytest.raises(EngineStoppedError, match=error.__name__):
                tokens_of(other.generate(greedy(3)))
            with pytest.raises(EngineStoppedError, match=error.__name__):
                engine.open_stream()
        line += 1 + line // 4
    assert line > 3


@in_loop
async def test_whoever_waits_hears_of_it(make):
    engine = make()
    stream, other = await engine.open_stream(), await engine.open_stream()
    await stream.append(text_ids(40, 1))
    waiting = asyncio.ensure_future(anext(other.complete([3], ENDLESS)))
    stuck = asyncio.ensure_future(engine.thread.call(lambda: None, when=lambda: False))
    await waiting
    break_off = BreakOff(MemoryError(), 1)
    with pytest.raises(EngineStoppedError):
        await engine.thread.call(lambda: sys.settrace(break_off))
        await stream.cut(26, 30)
    with pytest.raises(EngineStoppedError, match="MemoryError"):
        await stuck
    with pytest.raises(EngineStoppedError, match="MemoryError"):
        await other.append([1])
