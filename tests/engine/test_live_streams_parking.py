"""Turns of streams that come and go: in the cache, on the host, on disk."""

from __future__ import annotations

import gc

import pytest

from tests.engine.stream_oracle import greedy, text_ids, tokens_of


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


def test_what_queues_behind_a_turn_is_bounded(make_engine, monkeypatch):
    monkeypatch.setattr("paged_stream.engine.stream_rules.MAX_QUEUED_TOKENS", 10)
    stream = make_engine().open_stream()
    stream.append([5] * 50)
    reading = stream.generate(greedy(4))
    next(reading)
    stream.append([6] * 8)
    for more in ([7] * 3, [7] * 99):
        with pytest.raises(ValueError, match="at most 10 tokens may queue .* 8 do, got"):
            stream.append(more)
    stream.append([8] * 2)
    assert len(list(reading)) == 3
    stream.append([9] * 99)
    assert stream.position == 50 + 4 + 10 + 99


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
    thread = engine._caller._thread._thread
    del stream, engine
    gc.collect()
    thread.join()
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


@pytest.mark.parametrize("num_reading", [1, 2])
def test_a_parked_stream_is_edited_while_others_wait_for_their_readers(make_engine, num_reading):
    engine = make_engine(kv_cache_memory_bytes=5 * num_reading * 8 * 512)  # room for no more
    streams = [engine.open_stream() for _ in range(num_reading + 1)]
    for stream in streams:
        stream.append(text_ids(60))
        stream._at_rest(lambda: None)
    reading = [stream.generate(greedy(9)) for stream in streams[1:]]
    seen = [[next(deltas)] for deltas in reading]
    assert streams[0].stats().location == "host"
    child = streams[0].fork()
    streams[0].rewind(streams[0].position - 3)
    assert len(tokens_of(child.generate(greedy(4)))) == 4
    answers = [tokens_of([*deltas, *more]) for deltas, more in zip(seen, reading, strict=True)]
    alone = make_engine().open_stream()
    alone.append(text_ids(60))
    assert answers == [tokens_of(alone.generate(greedy(9)))] * num_reading


def test_streams_that_rest_for_long_are_parked(make_engine):
    now = [1000.0]
    engine = make_engine(park_after_seconds=10)
    engine.core.clock = lambda: now[0]
    busy, idle, listening = (engine.open_stream() for _ in range(3))
    for stream in (idle, busy, listening):
        stream.append(text_ids(9))
        tokens_of(stream.generate(greedy(2)))
    for _ in range(4):
        now[0] += 4
        busy.append([5])
        tokens_of(busy.generate(greedy(2)))
        listening.append([6, 7])  # is computed by the steps of others
        engine.core.advance()
    assert [s.stats().location for s in (busy, listening, idle)] == ["cache", "cache", "host"]
    assert engine.park_idle_streams(idle_seconds=10) == 0
    assert engine.park_idle_streams() == 2
    assert engine.stats().num_parked_streams == 3
    idle.append([8])
    assert len(tokens_of(idle.generate(greedy(2)))) == 2
    assert idle.stats().location == "cache"
