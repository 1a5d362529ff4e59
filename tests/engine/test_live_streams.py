"""Whatever is done to live streams, in any order, each has the tokens of an independent replay.

The oracle's cuts and rewinds are done to a cache of raw keys. The engines are small, so streams are
parked and come back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from paged_stream import EngineConfig, LLMEngine
from tests.engine.stream_oracle import VOCAB, Oracle, greedy

PINS = ([7, 8, 9], [7, 8, 9, 10, 11, 12, 13, 14, 15], [20])
INDEX = st.integers(0, 999)
TOKENS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=24)


class Live:
    """An open stream with its oracle and, while it generates, what reads it."""

    def __init__(self, engine, stream, oracle: Oracle) -> None:
        self.engine, self.stream, self.oracle = engine, stream, oracle
        self.reader = None
        self.queued: list[int] = []

    def leave(self) -> None:
        """End the turn. What the engine had ready and nobody read is part of the stream."""
        if self.reader is None:
            return
        sequence = self.stream.inner._sequence
        ready: list[int] = []
        if sequence.generates:  # what was appended meanwhile is not behind these yet
            ready += sequence.token_ids(self.oracle.num_tokens, sequence.num_tokens)
        else:  # the end is there to be read
            ready += [token_id for delta in self.reader for token_id in delta.delta_token_ids]
        self.reader.close()
        self.reader = None
        for token_id in ready:
            self.oracle.take(token_id)
        self.oracle.pending += self.queued
        self.queued = []


class LiveStreams(RuleBasedStateMachine):
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[Live] = []
        self.requests: dict[tuple[int, str], tuple[list[int], int, list[int]]] = {}
        self.count = 0
        self.scratch = tempfile.TemporaryDirectory()

    @initialize(
        caching=st.booleans(),
        host_bytes=st.sampled_from([0, 20_000, None]),
        decode_steps=st.sampled_from([1, 2, 3, 8]),
        ahead=st.booleans(),
    )
    def start(self, caching, host_bytes, decode_steps, ahead):
        # What was submitted before a reader fell behind is delivered nevertheless.
        self.max_unread = (1 + ahead) * decode_steps
        self.engines = [
            LLMEngine(
                EngineConfig(
                    model=str(self.folder),
                    num_sink_tokens=2,
                    window_size=9,
                    block_size=block_size,
                    max_num_seqs=3,
                    max_num_batched_tokens=13,
                    num_decode_steps=decode_steps,
                    dtype="float32",
                    kv_cache_memory_bytes=tokens * 512,
                    enable_prefix_caching=caching,
                    parking_memory_bytes=host_bytes,
                    parking_dir=self.scratch.name,
                )
            )
            for block_size, tokens in ((4, 48), (3, 60))
        ]
        for engine in self.engines:
            engine.core.executor.runs_ahead = ahead

    def pick(self, index: int, *, idle: bool = True) -> Live | None:
        streams = [live for live in self.streams if not idle or live.reader is None]
        return streams[index % len(streams)] if streams else None

    def edit(self, live: Live, edit: Callable[[], object]) -> bool:
        """Do something that may find no room, but only beside requests, which `step` reads."""
        try:
            edit()
        except RuntimeError as error:
            assert "no room for this stream beside what runs" in str(error)
            scheduler, core = live.engine.core.scheduler, live.engine.core
            busy = (s for s in scheduler.sequences.values() if s.status.name != "IDLE")
            reading = {s.seq_id for s in busy if s.seq_id in scheduler.kv} - core.at_rest()
            assert reading
            return False
        return True

    # Opening and closing

    @precondition(lambda self: len(self.streams) < 6)
    @rule(where=INDEX, sinks=st.integers(0, 7), window=st.integers(1, 12))
    def open(self, where, sinks, window):
        engine = self.engines[where % 2]
        stream = engine.open_stream(num_sink_tokens=sinks, window_size=window)
        self.streams.append(Live(engine, stream, Oracle(sinks, window)))

    @precondition(lambda self: len(self.streams) < 6)
    @rule(where=INDEX, pin=st.sampled_from(PINS))
    def open_pinned(self, where, pin):
        engine = self.engines[where % 2]
        live = Live(engine, engine.open_stream(pin=pin), Oracle(len(pin), 9))
        live.oracle.pending = list(pin)
        self.streams.append(live)

    @rule(index=INDEX)
    def close(self, index):
        if live := self.pick(index, idle=False):
            self.streams.remove(live)
            live.stream.close()
            assert live.reader is None or len(list(live.reader)) <= 2

    # Turns

    @rule(index=INDEX, token_ids=TOKENS)
    def append(self, index, token_ids):
        if live := self.pick(index, idle=False):
            live.stream.append(token_ids)
            (live.oracle.pending if live.reader is None else live.queued).extend(token_ids)

    @rule(index=INDEX, num_tokens=st.integers(1, 12))
    def generate(self, index, num_tokens):
        live = self.pick(index)
        if live is None:
            return
        if not live.oracle.has_next:
            with pytest.raises(ValueError, match="append to it before generating"):
                live.stream.generate(greedy(num_tokens))
            return
        seen = [t for d in live.stream.generate(greedy(num_tokens)) for t in d.delta_token_ids]
        assert len(seen) == num_tokens
        for token_id in seen:
            live.oracle.take(token_id)

    @rule(index=INDEX, num_tokens=st.integers(1, 12))
    def begin(self, index, num_tokens):
        live = self.pick(index)
        if live is not None and live.oracle.has_next:
            live.reader = live.stream.generate(greedy(num_tokens))
            self.read(self.streams.index(live), 1)

    @rule(index=INDEX, count=st.integers(1, 5))
    def read(self, index, count):
        live = self.pick(index, idle=False)
        for _ in range(count):
            if live is None or live.reader is None:
                return
            delta = next(live.reader)
            for token_id in delta.delta_token_ids:
                live.oracle.take(token_id)
            if delta.finished:
                live.leave()

    @rule(index=INDEX)
    def leave(self, index):
        if live := self.pick(index, idle=False):
            live.leave()

    # Editing

    @precondition(lambda self: len(self.streams) < 6)
    @rule(index=INDEX)
    def fork(self, index):
        if live := self.pick(index):
            children = []
            if self.edit(live, lambda: children.append(live.stream.fork())):
                self.streams.append(Live(live.engine, children[0], live.oracle.fork()))

    @rule(index=INDEX, start=INDEX, length=INDEX)
    def cut(self, index, start, length):
        if live := self.pick(index):
            live.oracle.settle()
            first, stop = live.oracle.first_kept, live.oracle.stream.position
            if first < stop:
                start = first + start % (stop - first)
                end = start + 1 + length % (stop - start)
                if self.edit(live, lambda: live.stream.cut(start, end)):
                    live.oracle.cut(start, end)

    @rule(index=INDEX, position=INDEX)
    def rewind(self, index, position):
        if live := self.pick(index):
            live.oracle.settle()
            first = max(live.oracle.first_kept, live.oracle.num_sinks)
            last = live.oracle.num_tokens
            if first <= last:
                position = first + position % (last - first + 1)
                if self.edit(live, lambda: live.stream.rewind(position)):
                    live.oracle.rewind(position)

    # Away and back

    @rule(index=INDEX)
    def park(self, index):
        if live := self.pick(index):
            live.stream.park()
            assert live.stream.stats().location in ("host", "disk", "none")

    @rule(where=INDEX)
    def park_all(self, where):
        self.engines[where % 2].park_idle_streams()

    @rule(index=INDEX, where=INDEX, closes=st.booleans())
    def save_and_load(self, index, where, closes):
        if live := self.pick(index):
            path = Path(self.scratch.name) / "saved.stream"
            live.stream.save(path)
            engine = self.engines[where % 2]
            if closes or len(self.streams) >= 6:
                self.streams.remove(live)
                live.stream.close()
            self.streams.append(Live(engine, engine.load_stream(path), live.oracle.fork()))

    # Requests beside them

    @rule(where=INDEX, prompt=TOKENS, num_tokens=st.integers(1, 12))
    def request(self, where, prompt, num_tokens):
        self.count += 1
        name = str(self.count)
        self.engines[where % 2].add_request(name, prompt, greedy(num_tokens))
        self.requests[where % 2, name] = prompt, num_tokens, []

    @rule(index=INDEX)
    def abort(self, index):
        if self.requests:
            where, name = key = sorted(self.requests)[index % len(self.requests)]
            self.engines[where].abort_request(name)
            del self.requests[key]

    @rule(where=INDEX)
    def step(self, where):
        where %= 2
        for delta in self.engines[where].step():
            prompt, num_tokens, seen = self.requests[where, delta.request_id]
            seen += delta.delta_token_ids
            if delta.finished:
                del self.requests[where, delta.request_id]
                assert len(seen) == num_tokens
                oracle = Oracle(2, 9)
                oracle.pending = list(prompt)
                for token_id in seen:
                    oracle.take(token_id)

    @invariant()
    def everything_adds_up(self):
        for engine in getattr(self, "engines", ()):
            engine.core.scheduler.check_integrity()
        for live in self.streams:
            unread = 0 if live.reader is None else self.max_unread
            position = live.stream.position
            assert live.oracle.num_tokens <= position
            assert position <= live.oracle.num_tokens + len(live.queued) + unread

    def teardown(self):
        for live in self.streams:
            live.leave()
            if live.oracle.has_next:
                self.generate(self.streams.index(live), 2)
        for where, engine in enumerate(getattr(self, "engines", ())):
            while engine.has_unfinished_requests():
                self.step(where)
        assert not self.requests
        for live in self.streams:
            live.stream.close()
        for engine in getattr(self, "engines", ()):
            engine.core.flush()
            engine.core.scheduler.check_integrity()
            stats = engine.stats()
            assert (stats.num_used_blocks, stats.num_streams, stats.num_parked_streams) == (0, 0, 0)
            assert engine.core.executor.parked_bytes() == (0, 0)
            assert not engine.core.turns and not engine.core.turns.requests
        assert not list(Path(self.scratch.name).glob("*/*.safetensors"))
        self.scratch.cleanup()


@pytest.fixture(scope="module")
def machine(bare_folder):
    return type("Machine", (LiveStreams,), {"folder": bare_folder})


def test_any_history_gives_the_oracles_tokens(machine):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_what_is_ready_when_a_reader_leaves_comes_before_what_was_queued(machine):
    state = machine()
    state.start(caching=False, host_bytes=0, decode_steps=3, ahead=False)
    state.open(sinks=1, where=0, window=11)
    state.append(index=0, token_ids=[15, 4])
    state.begin(index=0, num_tokens=12)
    state.append(index=0, token_ids=[19, 45])
    state.step(where=0)
    state.everything_adds_up()
    state.leave(index=0)
    state.everything_adds_up()
    state.teardown()


def test_a_block_that_comes_behind_what_may_be_computed_ahead(machine):
    """The last of two steps works out where the next launch writes first: its column must have its
    block by then."""
    state = machine()
    state.start(decode_steps=2, caching=False, host_bytes=None, ahead=True)
    state.request(num_tokens=11, prompt=[14, 33, 60, 25, 40, 33], where=1)
    state.teardown()
