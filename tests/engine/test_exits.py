"""The interpreter ends well with whatever is open: exit code 0, and nothing on stderr."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROLOGUE = """
import asyncio, atexit, sys, threading
from paged_stream import LLM, AsyncLLMEngine, EngineConfig, LLMEngine, SamplingParams
ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
MODEL, FOLDER = sys.argv[1:]
CONFIG = EngineConfig(model=MODEL, window_size=24, parking_memory_bytes=0, parking_dir=FOLDER)
"""


def run(code: str, folder, parking_folder, *, before: str = "", expected: str = "") -> None:
    program = textwrap.dedent(before) + PROLOGUE + textwrap.dedent(code)
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", program]
    command += [str(folder), str(parking_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", expected)
    assert not list(parking_folder.iterdir())


@pytest.mark.slow
def test_with_everything_open(folder, tmp_path):
    run(
        """
        llm, engine, async_engine = LLM(MODEL), LLMEngine(CONFIG), AsyncLLMEngine(CONFIG)
        stream, other, parked = [engine.open_stream() for _ in range(3)]
        for each in stream, other, parked:
            each.append([5, 6, 7])
        half_read, unread = stream.generate(ENDLESS), engine.open_stream()
        next(half_read)
        engine.add_request("a", [5, 6], ENDLESS)
        engine.step()
        parked.park()
        loop = asyncio.new_event_loop()
        async_stream = loop.run_until_complete(async_engine.open_stream())
        loop.run_until_complete(async_stream.append([5, 6, 7]))
        deltas = async_stream.generate(ENDLESS), async_engine.generate([5, 6], ENDLESS)
        for each in deltas:
            loop.run_until_complete(anext(each))
        loop.close()
        cycle = [other.generate(ENDLESS)]  # for the last collection
        cycle.append(cycle)
        next(cycle[0])
        """,
        folder,
        tmp_path,
    )


@pytest.mark.slow
@pytest.mark.parametrize("times", range(3))
def test_while_a_daemon_thread_generates(folder, tmp_path, times):
    """A thread that came back from a kernel into an ending interpreter would abort it."""
    run(
        """
        begun = threading.Barrier(4)

        def generate(engine):
            with engine.open_stream() as stream:
                stream.append([5, 6, 7])
                for number, _ in enumerate(stream.generate(ENDLESS)):
                    if number == 3:
                        begun.wait()

        def answer(llm):
            prompts = [[5, 6, 7]] * 8
            params = SamplingParams(max_tokens=10_000, ignore_eos=True)
            begun.wait()
            llm.generate(prompts, params, use_tqdm=False)

        def load():
            begun.wait()
            while True:
                LLMEngine(CONFIG).close()

        for target, args in [(generate, [LLMEngine(CONFIG)]), (answer, [LLM(MODEL)]), (load, [])]:
            threading.Thread(target=target, args=args, daemon=True).start()
        begun.wait()
        """,
        folder,
        tmp_path,
    )


@pytest.mark.slow
def test_engines_are_there_for_what_runs_at_exit(folder, tmp_path):
    """Also for functions that were registered before this package was imported."""
    run(
        """
        engine = LLMEngine(CONFIG)
        stream = engine.open_stream()
        atexit.register(use)
        """,
        folder,
        tmp_path,
        before="""
        import atexit

        def use():
            stream.append([5, 6, 7])
            print(len(list(stream.generate(SamplingParams(max_tokens=3, ignore_eos=True)))))

        atexit.register(use)
        """,
        expected="3\n3\n",
    )


def test_a_thread_that_was_inside_before_is_waited_for(folder, tmp_path):
    """Also while it finds out whether it was."""
    run(
        """
        import time
        from paged_stream.engine import lifetime

        @lifetime.finish_before_exit
        def outer():
            begun.set()
            ending.wait()
            inner()
            print("finished", flush=True)

        @lifetime.finish_before_exit
        def inner():
            pass

        def trace(frame, event, argument):
            if frame.f_code is lifetime._stay_outside.__code__:
                time.sleep(0.2)  # the interpreter would end here
            return None

        def thread():
            sys.settrace(trace)
            outer()

        begun, ending = threading.Event(), threading.Event()
        wait = time.sleep
        lifetime.time = type("Time", (), {"sleep": lambda seconds: (ending.set(), wait(seconds))})
        threading.Thread(target=thread, daemon=True).start()
        begun.wait()
        """,
        folder,
        tmp_path,
        expected="finished\n",
    )
