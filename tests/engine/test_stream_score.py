"""`Stream.score`: what is appended in pieces is as likely as in one text."""

from __future__ import annotations

import pytest

from paged_stream import LLM
from tests.engine.stream_oracle import greedy, text_ids, tokens_of


def close(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        assert a is None or a == pytest.approx(b, abs=1e-4)


@pytest.fixture
def expected(folder):
    llm = LLM(str(folder), num_sink_tokens=4, window_size=24, block_size=8, dtype="float32")
    return llm.score(text_ids(150), use_tqdm=False)


@pytest.mark.parametrize("sizes", [[150], [1, 149], [1, 1, 60, 88], [33, 32, 32, 53]])
def test_pieces_score_as_one_text(make_engine, expected, sizes):
    ids, scores = text_ids(150), []
    with make_engine().open_stream() as stream:
        for size in sizes:
            start = stream.position
            scores += stream.score(ids[start : start + size])
    close(scores, expected)


def test_scoring_mixes_with_appending_and_generating(make_engine, expected):
    ids = text_ids(150)
    engine = make_engine(enable_prefix_caching=True)
    with engine.open_stream() as stream:
        stream.append(ids[:50])
        close(stream.score(ids[50:90]), expected[50:90])
        stream.append(ids[90:100])
        stream.park()
        close(stream.score(ids[100:]), expected[100:])
        answer = tokens_of(stream.generate(greedy(5)))
        again = stream.score(ids[:3])
    with engine.open_stream() as stream:  # what was appended is found in the cache, never scored
        scores = stream.score(ids + answer + ids[:3])
    close(scores[:150], expected)
    close(again, scores[-3:])


def test_nothing_predicts_the_first_token_nor_the_first_after_a_rewind(make_engine, expected):
    ids = text_ids(150)
    with make_engine().open_stream() as stream:
        assert stream.score(ids[:1]) == [None]
        close(stream.score(ids[1:10]), expected[1:10])
        stream.append(ids[10:20])
        stream.rewind(10)
        scores = stream.score(ids[10:20])
        assert scores[0] is None
        close(scores[1:], expected[11:20])


def test_a_generating_stream_cannot_score(make_engine):
    with make_engine().open_stream() as stream:
        stream.append(text_ids(5))
        reading = stream.generate(greedy(5))
        next(reading)
        with pytest.raises(ValueError, match="the stream is generating"):
            stream.score([1])
        with pytest.raises(ValueError):
            stream.fork()
        reading.close()
        with pytest.raises(ValueError, match="must not be empty"):
            stream.score([])
        assert len(stream.score([1])) == 1
