"""A forked child: what it has of its parent's engines says so, and engines of its own work."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# A child that hangs is killed some day, so that a failure is one and not a suite without end.
PROLOGUE = """
import asyncio, gc, os, signal, sys, threading, warnings
from pathlib import Path
from paged_stream import LLM, AsyncLLMEngine, AsyncStream, EngineConfig, LLMEngine
from paged_stream import SamplingParams, Stream
from tests.engine.public_uses import USES, failure, uses_of

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
PROMPT = [i % 90 + 2 for i in range(200)]

def in_child(function, end=sys.exit):
    pid = os.fork()
    if pid == 0:
        signal.alarm(1000)
        function()
        end(0)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"the child ended with {status}"

def answer(model, **settings):
    with LLM(model, **settings) as llm:
        outputs = llm.generate([PROMPT, PROMPT[:7]], GREEDY, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]

async def read(deltas):
    return [token async for delta in deltas for token in delta.delta_token_ids]
"""


def run(code: str, *args: object) -> None:
    """Run a program that must end well and say nothing."""
    program = PROLOGUE + textwrap.dedent(code)
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", program, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.slow
def test_what_the_parent_has_made_says_so_at_once(folder):
    run(
        """
        config = EngineConfig(model=sys.argv[1], window_size=24)
        llm, engine, async_engine = LLM(config.model), LLMEngine(config), AsyncLLMEngine(config)
        stream, async_stream = engine.open_stream(), asyncio.run(async_engine.open_stream())
        stream.append(PROMPT)
        asyncio.run(async_stream.append(PROMPT))
        deltas = stream.generate(ENDLESS)
        next(deltas)
        things = {LLM: llm, LLMEngine: engine, Stream: stream, AsyncLLMEngine: async_engine,
                  AsyncStream: async_stream}
        parent = os.getpid()
        expected = f"this engine was made in another process (pid {parent}); " + (
            "make one after the fork")

        async def use_everything():
            for cls, thing in things.items():
                assert f"of process {parent}>" in repr(thing)
                for name, use in uses_of(cls).items():
                    error = await failure(use, thing)
                    assert type(error) is RuntimeError and str(error) == expected, (name, error)
            error = await failure(lambda _: next(deltas), None)
            assert str(error) == expected, error
            await async_stream.close()
            await async_engine.close()
            stream.close(), engine.close(), llm.close()

        in_child(lambda: asyncio.run(use_everything()))
        # The parent goes on.
        next(deltas), deltas.close()
        assert len(asyncio.run(read(async_stream.generate(GREEDY)))) == 20
        asyncio.run(async_engine.close())
        stream.close(), engine.close(), llm.close()
        """,
        folder,
    )


@pytest.mark.slow
def test_letting_go_in_the_child_leaves_the_parent_alone(folder, tmp_path):
    """Neither the collector nor the end of the child removes files, waits or complains."""
    run(
        """
        folder = Path(sys.argv[2])
        config = EngineConfig(model=sys.argv[1], window_size=24, parking_memory_bytes=0,
                              parking_dir=folder)
        things = [LLMEngine(config), AsyncLLMEngine(config)]
        streams = [things[0].open_stream(), asyncio.run(things[1].open_stream())]
        streams[0].append(PROMPT), asyncio.run(streams[1].append(PROMPT))
        things.append(streams[0].generate(ENDLESS))
        next(things[2]), things.pop().close()
        streams[0].park(), asyncio.run(streams[1].park())
        files = sorted(folder.rglob("*.safetensors"))
        assert len(files) == 2

        def let_go():
            warnings.simplefilter("error")
            things.clear(), streams.clear()
            gc.collect()

        in_child(let_go)
        in_child(lambda: None)  # which keeps them to its end
        assert sorted(folder.rglob("*.safetensors")) == files
        assert streams[0].score([5, 6])
        assert len(asyncio.run(read(streams[1].generate(GREEDY)))) == 20
        things[0].close(), asyncio.run(things[1].close())
        assert not list(folder.iterdir())
        """,
        folder,
        tmp_path,
    )


NEW_ENGINE = """
    model = sys.argv[1]
    expected = answer(model)  # so that torch's threads exist

    def compute():
        assert answer(model) == expected
        assert answer(model, num_threads=2) == expected
        config = EngineConfig(model=model)

        async def use():
            async with AsyncLLMEngine(config) as engine, await engine.open_stream() as stream:
                await stream.append(PROMPT)
                return await read(stream.generate(GREEDY))

        assert asyncio.run(use()) == expected[0]
        with LLMEngine(config) as engine, engine.open_stream() as stream:
            scores = stream.score(PROMPT)
            fork = stream.fork()
            stream.park()
            stream.cut(50, 60), stream.save_bytes(), fork.close()
            params = SamplingParams(seed=1, logprobs=5, presence_penalty=1, max_tokens=5)
            list(stream.generate(params))
        assert len(scores) == len(PROMPT)
        torch = sys.modules["torch"]
        torch.randn(1000, 1000).softmax(-1).sum()  # nor does anybody else's torch hang

    in_child(compute)
    in_child(lambda: in_child(compute))
    thread = threading.Thread(target=in_child, args=[compute, os._exit])
    thread.start(), thread.join()
    assert answer(model) == expected
"""


@pytest.mark.slow
def test_a_new_engine_in_the_child_works(folder):
    run(NEW_ENGINE, folder)


@pytest.mark.slow
def test_a_new_engine_in_the_child_works_with_real_weights():
    run(
        """
        settings = {"window_size": 512, "kv_cache_memory_bytes": 256 << 20}
        model = "smollm2-135m-instruct"
        expected = answer(model, **settings)

        def compute():
            assert answer(model, **settings) == expected

        in_child(compute)
        """
    )


@pytest.mark.slow
def test_a_pool_of_processes(folder):
    run(
        """
        import multiprocessing
        model = sys.argv[1]
        expected = answer(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer Pythons warn about forks beside threads
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map(answer, [model] * 3, chunksize=1) == [expected] * 3
        """,
        folder,
    )
