"""Each engine computes with its own number of threads and leaves torch's as it was."""

from __future__ import annotations

import threading

import pytest
import torch

from paged_stream import SamplingParams
from paged_stream.system.processor_threads import processor_threads

ONE = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr("paged_stream.system.processor_quota.cpu_quota", lambda *_: None)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    yield
    torch.set_num_threads(before)


def test_the_number_holds_within_and_in_this_thread_only():
    seen, ready, within = [], threading.Event(), threading.Event()

    def other():
        seen.append(torch.get_num_threads())  # its own from the first look on
        ready.set()
        within.wait()
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    for count, expected in ((2, 2), (None, 3), (3, 3)):
        with pytest.raises(KeyError), processor_threads(count):
            assert torch.get_num_threads() == expected
            within.set()
            thread.join()
            raise KeyError
        assert torch.get_num_threads() == 3
    assert seen == [3, 3]


def test_engines_side_by_side(make_engine, monkeypatch):
    engines = {count: make_engine(num_threads=count) for count in (1, 2, None)}
    assert torch.get_num_threads() == 3
    seen = []
    for engine in engines.values():
        runner = engine.core.executor._worker._runner
        submit = runner.submit

        def spy(output, submit=submit):
            seen.append(torch.get_num_threads())
            return submit(output)

        monkeypatch.setattr(runner, "submit", spy)
        monkeypatch.setattr(runner, "execute", lambda output, spy=spy: spy(output)())
    for _ in range(2):
        for engine in engines.values():
            engine.add_request("a", [5, 6], ONE)
        for engine in engines.values():
            engine.step()
        for engine in engines.values():
            engine.abort_request("a")
    assert seen == [1, 2, 3] * 2
    assert torch.get_num_threads() == 3
