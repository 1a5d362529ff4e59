"""Whatever is done to live streams, in any order, each has the tokens of an independent replay.

The oracle is `PublishedStream` in float64, fed the same history token by token; a cut or a rewind
is done to its cache of raw keys. The engines are small, so streams are parked and come back.
"""

from __future__ import annotations

import copy
import functools
import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
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

from paged_stream import EngineConfig, LLMEngine, SamplingParams
from tests import family_reference
from tests.reference import PublishedStream, tiny_llama

NEAR = 1e-3  # float32 may choose another of two logits that are closer than this
VOCAB = 97
PINS = ([7, 8, 9], [7, 8, 9, 10, 11, 12, 13, 14, 15], [20])
INDEX = st.integers(0, 999)
TOKENS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=24)


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)


@functools.cache
def double_llama():
    return tiny_llama(0).to(torch.float64)


class Oracle:
    """`PublishedStream`, with the ids in its cache and the tokens that it has not computed."""

    def __init__(self, num_sink_tokens: int, window_size: int, model=None) -> None:
        self.stream = PublishedStream(model or double_llama(), num_sink_tokens, window_size)
        self.kept: list[int] = []
        self.pending: list[int] = []

    def fork(self) -> Oracle:
        other = copy.copy(self)
        other.stream = copy.copy(self.stream)
        other.stream.keys, other.stream.values = self.stream.keys[:], self.stream.values[:]
        other.kept, other.pending = self.kept[:], self.pending[:]
        return other

    @property
    def num_tokens(self) -> int:
        return self.stream.position + len(self.pending)

    @property
    def num_sinks(self) -> int:
        return self.stream.start_size

    @property
    def first_kept(self) -> int:
        """First position behind the sinks that is still there."""
        return self.stream.position - max(0, len(self.kept) - self.num_sinks)

    @property
    def has_next(self) -> bool:
        return bool(self.pending) or len(self.kept) > self.num_sinks

    def step(self, token_id: int) -> torch.Tensor:
        logits = self.stream.step(token_id)
        self.kept.append(token_id)
        if len(self.kept) > self.num_sinks + self.stream.recent_size:
            del self.kept[self.num_sinks]
        return logits

    def settle(self) -> None:
        while len(self.pending) > 1:
            self.step(self.pending.pop(0))

    def logits(self) -> torch.Tensor:
        """Of the token that comes next; the last one is computed for it, once more if need be."""
        if not self.pending:
            self.pending = [self.kept.pop()]
            self.stream.rewind(1)
        self.settle()
        return self.step(self.pending.pop())

    def take(self, token_id: int) -> None:
        """Go on with what an engine chose, which must be a most likely token."""
        logits = self.logits()
        assert logits[token_id] >= logits.max() - NEAR, "not the most likely token"
        self.pending = [token_id]

    def cut(self, start: int, end: int) -> None:
        self.settle()
        self.stream.cut(start, end)
        begin = self.num_sinks + start - self._window_start(len(self.kept))
        del self.kept[begin : begin + end - start]

    def _window_start(self, length: int) -> int:
        return self.stream.position - (length - self.num_sinks)

    def rewind(self, position: int) -> None:
        self.settle()
        forgotten = self.stream.position - position
        if forgotten > 0:
            self.stream.rewind(forgotten)
            del self.kept[len(self.kept) - forgotten :]
        self.pending = self.pending[: max(0, -forgotten)]


class Live:
    """An open stream with its oracle and, while it generates, what reads it."""

    def __init__(self, engine, stream, oracle: Oracle) -> None:
        self.engine, self.stream, self.oracle = engine, stream, oracle
        self.reader = None
        self.queued: list[int] = []

    def leave(self) -> None:
        """End the turn. A token that the engine had ready and nobody read is part of the stream."""
        if self.reader is None:
            return
        self.reader.close()
        self.reader = None
        if self.stream.position > self.oracle.num_tokens + len(self.queued):
            sequence = self.stream._sequence
            end = sequence.num_tokens - len(self.queued)
            self.oracle.take(sequence.token_ids(end - 1, end)[0])
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

    @initialize(caching=st.booleans(), host_bytes=st.sampled_from([0, 20_000, None]))
    def start(self, caching, host_bytes):
        self.engines = [
            LLMEngine(
                EngineConfig(
                    model=str(self.folder),
                    num_sink_tokens=2,
                    window_size=9,
                    block_size=block_size,
                    max_num_seqs=3,
                    max_num_batched_tokens=13,
                    dtype="float32",
                    kv_cache_memory_bytes=tokens * 512,
                    enable_prefix_caching=caching,
                    parking_memory_bytes=host_bytes,
                    parking_dir=self.scratch.name,
                )
            )
            for block_size, tokens in ((4, 48), (3, 60))
        ]

    def pick(self, index: int, *, idle: bool = True) -> Live | None:
        streams = [live for live in self.streams if not idle or live.reader is None]
        return streams[index % len(streams)] if streams else None

    def edit(self, live: Live, edit: Callable[[], object]) -> bool:
        """Do something that may find no room, but only while others run."""
        try:
            edit()
        except RuntimeError as error:
            assert "no room for this stream beside what runs" in str(error)
            assert live.engine.stats().num_running
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
            assert live.reader is None or len(list(live.reader)) <= 1

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
            engine.scheduler.check_integrity()
        for live in self.streams:
            unread = live.reader is not None
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
            engine.scheduler.check_integrity()
            stats = engine.stats()
            assert (stats.num_used_blocks, stats.num_streams, stats.num_parked_streams) == (0, 0, 0)
            assert engine.executor.parked_bytes() == (0, 0)
            assert not engine.core.turns and not engine.core.requests
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
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


# Cuts, exactly


def whole_vocab(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, logprobs=VOCAB)


def run(stream, num_tokens: int) -> tuple[list[int], torch.Tensor]:
    """Tokens of a turn, and log-probabilities [tokens, vocab] at their places."""
    deltas = list(stream.generate(whole_vocab(num_tokens)))
    logprobs = [
        [entry.top[token_id] for token_id in range(VOCAB)]
        for delta in deltas
        for entry in delta.logprobs or ()
    ]
    return [token for delta in deltas for token in delta.delta_token_ids], torch.tensor(logprobs)


def text_ids(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (count,), generator=generator).tolist()


ROPES = {
    "default": {},
    "yarn": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
        }
    },
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("sinks, window, block_size", [(0, 7, 4), (4, 24, 8), (9, 20, 3)])
def test_logits_after_cuts_are_the_oracles(tmp_path, rope, sinks, window, block_size):
    model = tiny_llama(0, **ROPES[rope])
    model.save_pretrained(tmp_path)
    engine = LLMEngine(
        EngineConfig(
            model=str(tmp_path),
            num_sink_tokens=sinks,
            window_size=window,
            block_size=block_size,
            max_num_seqs=4,
            max_num_batched_tokens=16,
            kv_cache_memory_bytes=1 << 20,
        )
    )
    stream, oracle = engine.open_stream(), Oracle(sinks, window, model.to(torch.float64))
    for turn, length in enumerate((sinks + 6, 30, 3, 50, 8, 1)):
        stream.append(ids := text_ids(length, turn))
        oracle.pending += ids
        oracle.settle()
        first, stop = oracle.first_kept, oracle.stream.position
        spans = [(stop - 2, stop - 1), (first, first + 2), (first + 1, stop), (first, stop)]
        start, end = spans[turn % 4]
        stream.cut(start, end)
        oracle.cut(start, end)
        assert stream.stats().window_start == oracle.first_kept == first + end - start
        tokens, logprobs = run(stream, 6)
        for token_id, row in zip(tokens, logprobs, strict=True):
            torch.testing.assert_close(
                row, oracle.logits().log_softmax(-1).float(), atol=1e-4, rtol=0
            )
            oracle.pending = [token_id]
        engine.scheduler.check_integrity()


ONE_LAYER = {
    "gptj": {"n_layer": 1},
    "gpt_neox": {"num_hidden_layers": 1},
    "mpt": {"n_layers": 1},
    "falcon_rw": {"num_hidden_layers": 1},
    "falcon_alibi_parallel": {"num_hidden_layers": 1},
    "gemma3": {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]},
    "gemma3-full": {"num_hidden_layers": 1, "layer_types": ["full_attention"]},
    "phi3_longrope": {"num_hidden_layers": 1},
    "llama_yarn": {"num_hidden_layers": 1},
    "stablelm": {"num_hidden_layers": 1},
    "qwen2": {"num_hidden_layers": 1, "max_window_layers": 1},
    "smollm3": {"num_hidden_layers": 1, "no_rope_layers": [0]},
}


@pytest.mark.parametrize("name", ONE_LAYER)
def test_a_cut_in_a_one_layer_model_equals_the_text_without_the_span(tmp_path, monkeypatch, name):
    """There K and V depend on their own token alone, so nothing has read what is removed."""
    variant = name.partition("-")[0]
    variants = family_reference.VARIANTS
    monkeypatch.setitem(variants, variant, variants[variant] | ONE_LAYER[name])
    family_reference.tiny_model(variant).save_pretrained(tmp_path)
    engine = LLMEngine(
        EngineConfig(
            model=str(tmp_path),
            num_sink_tokens=3,
            window_size=60,
            block_size=4,
            max_num_seqs=4,
            max_num_batched_tokens=16,
            dtype="float32",
            kv_cache_memory_bytes=1 << 20,
            enable_prefix_caching=False,
        )
    )
    ids = text_ids(40)
    for start, end in ((3, 5), (7, 21), (30, 39)):
        stream, fresh = engine.open_stream(), engine.open_stream()
        stream.append(ids)
        stream.cut(start, end)
        fresh.append(ids[:start] + ids[end:])
        (tokens, logprobs), (expected_tokens, expected) = run(stream, 12), run(fresh, 12)
        assert tokens == expected_tokens
        torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)
        stream.park()  # and the same again after a rest
        agreed = [run(either, 4)[0] for either in (stream, fresh)]
        assert agreed[0] == agreed[1]


# Turns


def tokens_of(deltas) -> list[int]:
    return [token for delta in deltas for token in delta.delta_token_ids]


def test_end_turn_ends_the_iterator(make_engine):
    stream = make_engine().open_stream()
    stream.append([5, 6, 7])
    reading = stream.generate(greedy(50))
    next(reading)
    stream.end_turn()
    assert list(reading) == []
    assert not stream.is_generating
    assert stream.position == 4


def test_an_old_iterator_does_not_end_a_new_turn(make_engine):
    """Both have read all there is: it matters which one closes, not what it has read."""
    engine = make_engine()
    stream = engine.open_stream()
    stream.append([5, 6, 7])
    old = stream.generate(greedy(2))
    next(old), next(old)  # the turn is finished, the iterator is not
    new = stream.generate(greedy(5))
    seen = [next(new)]
    old.close()
    assert stream.is_generating
    assert len(tokens_of([*seen, *new])) == 5


# Parking


def turns(engine, num_streams: int, num_rounds: int) -> list[list[int]]:
    """Answers of many open streams that take turns."""
    streams = [engine.open_stream() for _ in range(num_streams)]
    answers = []
    for number in range(num_rounds):
        for index, stream in enumerate(streams):
            stream.append(text_ids(3 + 40 * (index % 5 == number), 100 * index + number))
            answers.append(tokens_of(stream.generate(greedy(3))))
    used = engine.stats().num_used_blocks
    assert used <= engine.stats().num_blocks
    for stream in streams:
        stream.close()
    return answers


@pytest.mark.parametrize("host_bytes", [None, 20 * 28 * 512, 0])
def test_many_open_streams_on_a_small_cache(make_engine, tmp_path, host_bytes):
    small = make_engine(
        kv_cache_memory_bytes=50 * 8 * 512, parking_memory_bytes=host_bytes, parking_dir=tmp_path
    )
    answers = turns(small, 200, 2)
    assert answers == turns(make_engine(), 200, 2)
    stats = small.stats()
    assert (stats.num_used_blocks, stats.num_streams, stats.num_parked_streams) == (0, 0, 0)
    assert (stats.parked_host_bytes, stats.parked_disk_bytes) == (0, 0)
    assert not list(tmp_path.glob("*/*"))


def test_where_a_stream_is(make_engine, tmp_path):
    for host_bytes, expected in ((None, "host"), (0, "disk")):
        engine = make_engine(parking_memory_bytes=host_bytes, parking_dir=tmp_path)
        stream = engine.open_stream()
        assert stream.stats().location == "none"
        stream.append(text_ids(50))
        tokens_of(stream.generate(greedy(2)))
        resident = stream.stats()
        assert resident.location == "cache"
        assert resident.kv_bytes == resident.num_blocks * 8 * 512 == engine.stats().kv_bytes
        stream.park()
        stats, parked = engine.stats(), stream.stats()
        assert (parked.location, parked.num_blocks) == (expected, 0)
        assert stats.num_parked_streams == 1
        assert stats.num_used_blocks == stats.kv_bytes == 0
        assert parked.kv_bytes == (4 + 23) * 512  # what later tokens can see
        assert parked.kv_bytes == stats.parked_host_bytes + stats.parked_disk_bytes
        assert (stats.parked_disk_bytes > 0) == (expected == "disk")
        assert len(list(tmp_path.glob("*/*"))) == (expected == "disk")
        stream.park()  # once more changes nothing
        assert stream.stats() == parked
        stream.close()
        assert not list(tmp_path.glob("*/*"))
        assert engine.stats().parked_host_bytes == engine.stats().parked_disk_bytes == 0


def test_parked_files_go_with_the_engine(make_engine, tmp_path):
    engine = make_engine(parking_memory_bytes=0, parking_dir=tmp_path)
    for count in (9, 30):
        stream = engine.open_stream()
        stream.append(text_ids(count))
    assert engine.park_idle_streams() <= 2
    stream.park()
    assert list(tmp_path.glob("*/*"))
    del stream, engine
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_parking_in_the_middle_of_things_changes_no_token(make_engine):
    answers = []
    for parks in (False, True):
        stream = make_engine().open_stream()
        answer = []
        for number in range(6):
            stream.append(text_ids(1 + 9 * number, number))
            if parks:
                stream.park()
            answer += tokens_of(stream.generate(greedy(4)))
            if parks:
                stream.park()
        answers.append(answer)
    assert answers[0] == answers[1]


def test_streams_that_rest_for_long_are_parked(make_engine, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("paged_stream.engine.time.monotonic", lambda: now[0])
    engine = make_engine(park_after_seconds=10)
    busy, idle, listening = (engine.open_stream() for _ in range(3))
    for stream in (idle, busy, listening):
        stream.append(text_ids(9))
        tokens_of(stream.generate(greedy(2)))
    for _ in range(4):
        now[0] += 4
        busy.append([5])
        tokens_of(busy.generate(greedy(2)))
        listening.append([6, 7])  # is computed by the steps of others
        engine.advance()
    assert [s.stats().location for s in (busy, listening, idle)] == ["cache", "cache", "host"]
    assert engine.park_idle_streams(idle_seconds=10) == 0
    assert engine.park_idle_streams() == 2
    assert engine.stats().num_parked_streams == 3
    idle.append([8])
    assert len(tokens_of(idle.generate(greedy(2)))) == 2
    assert idle.stats().location == "cache"


# Telemetry


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("sinks, window", [(4, 24), (0, 5), (11, 1)])
def test_every_eviction_is_told_once_and_in_order(make_engine, tmp_path, caching, sinks, window):
    engine = make_engine(enable_prefix_caching=caching)
    seen: list[int] = []

    def on_evict(first: int, stop: int) -> None:
        assert first < stop
        seen.extend(range(first, stop))

    with engine.open_stream(num_sink_tokens=sinks, window_size=window) as before:
        before.append(text_ids(150))  # so that the cache has the prompt already
        before._settle()
    stream = engine.open_stream(num_sink_tokens=sinks, window_size=window, on_evict=on_evict)

    def check() -> None:
        stream._settle()
        assert seen == list(range(sinks, max(sinks, stream.stats().window_start)))

    stream.append(text_ids(150))
    check()
    for number in range(4):
        stream.append(text_ids(number + 1))
        tokens_of(stream.generate(greedy(5)))
        check()
        if window > 5:
            stream.rewind(stream.position - 4)
            check()
        stream.park()
    stream.save(tmp_path / "a.stream")
    stream.close()
    stream = engine.load_stream(tmp_path / "a.stream", on_evict=on_evict)
    stream.append(text_ids(70))
    check()


def test_stream_stats_mean_what_they_say(make_engine):
    engine = make_engine()
    stream = engine.open_stream()
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens, stats.num_visible_tokens) == (0, 0, 0)
    stream.append(text_ids(20))
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens, stats.num_visible_tokens) == (20, 20, 0)
    stream._settle()
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens, stats.num_visible_tokens) == (20, 1, 19)
    assert (stats.num_evicted_tokens, stats.window_start, stats.num_blocks) == (0, 4, 3)
    reading = stream.generate(greedy(3))
    next(reading)
    stream.append([5, 6])  # queue behind the turn
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens) == (21, 3)
    assert len(list(reading)) == 2
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens) == (25, 3)
    stream.append(text_ids(30))
    stream._settle()
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_visible_tokens, stats.window_start) == (55, 28, 31)
    assert stats.num_evicted_tokens == 31 - 4
    stream.cut(35, 45)
    stats = stream.stats()
    assert (stats.num_tokens, stats.window_start, stats.num_visible_tokens) == (55, 41, 4 + 13)
    assert stats.num_evicted_tokens == 41 - 4
    stream.rewind(47)
    stats = stream.stats()
    assert (stats.num_tokens, stats.num_pending_tokens) == (47, 0)
    assert (stats.window_start, stats.num_visible_tokens) == (41, 4 + 6)
    assert stats.queue_seconds >= 0


def test_engine_stats_mean_what_they_say(make_engine):
    engine = make_engine(max_num_seqs=2, enable_prefix_caching=False)
    for number in range(3):
        engine.add_request(str(number), text_ids(5, number), greedy(4))
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_steps) == (0, 3, 0)
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_steps) == (2, 1, 1)
    assert (stats.num_computed_tokens, stats.num_generated_tokens) == (10, 2)
    assert stats.num_used_blocks == 2
    assert stats.kv_bytes == 2 * engine.cache_plan.block_bytes
    while engine.has_unfinished_requests():
        engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)
    assert (stats.num_computed_tokens, stats.num_generated_tokens) == (3 * (5 + 3), 12)
    assert stats.num_started_turns == 3
    assert stats.queue_seconds > 0 and stats.step_seconds > 0
    assert stats.num_evicted_tokens == 0
    with engine.open_stream() as stream:
        stream.append(text_ids(60))
        tokens_of(stream.generate(greedy(1)))
        assert engine.stats().num_streams == 1
        assert engine.stats().num_evicted_tokens == stream.stats().window_start - 4 == 33
    assert engine.stats().num_started_turns == 4


def test_a_conversation_rewound_to_its_pin_begins_anew(make_engine):
    engine = make_engine()
    stream = engine.open_stream(pin=[{"role": "system", "content": "be brief"}], window_size=100)
    pinned = stream.position
    first = tokens_of(stream.chat("hi", greedy(3)))
    tokens_of(stream.chat("ho", greedy(2)))
    assert stream.stats().window_start == pinned
    stream.rewind(pinned)
    assert tokens_of(stream.chat("hi", greedy(3))) == first
