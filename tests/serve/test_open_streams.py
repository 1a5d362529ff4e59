"""Streams of a service by id: what was left alone for too long is given back."""

from __future__ import annotations

from dataclasses import dataclass

from paged_stream.serve.open_streams import OpenStreams


@dataclass(eq=False)
class Stream:
    is_generating: bool = False


def test_streams_that_nobody_asks_for_are_forgotten():
    now = 0.0
    streams = OpenStreams(10, clock=lambda: now)
    left, used, busy = Stream(), Stream(), Stream(is_generating=True)
    ids = [streams.add(stream) for stream in (left, used, busy)]
    now = 8.0
    assert streams.remove_forgotten() == []
    assert streams.find(ids[1]) is used
    now = 11.0
    assert streams.remove_forgotten() == [left]
    assert [streams.find(each) for each in ids] == [None, used, busy]
    now, busy.is_generating = 30.0, False
    assert set(streams.remove_forgotten()) == {used, busy}


def test_a_stream_that_generates_does_not_hide_others():
    now = 0.0
    streams = OpenStreams(10, clock=lambda: now)
    streams.add(Stream(is_generating=True))
    left = Stream()
    streams.add(left)
    now = 20.0
    assert streams.remove_forgotten() == [left]


def test_without_a_limit_only_removal_ends_them():
    streams = OpenStreams(None, clock=lambda: 0.0)
    stream = Stream()
    stream_id = streams.add(stream)
    assert streams.remove_forgotten() == []
    assert streams.remove(stream_id) is stream
    assert streams.remove(stream_id) is None
    assert streams.find(stream_id) is None
