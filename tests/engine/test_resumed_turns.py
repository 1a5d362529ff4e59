"""A turn that is interrupted anywhere, saved in its midst and resumed elsewhere, is the same."""

from __future__ import annotations

import pytest

from paged_stream import SamplingParams, Stream, StructuredOutputsParams
from paged_stream.engine.outputs import DeltaQueue
from paged_stream.engine.stream_file import read_stream, write_stream_file
from paged_stream.engine.turn import Turn
from paged_stream.text.tokenizer import load_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def turned(token_ids, logits):
    """Depends on every token that was generated and is visible."""
    return logits.roll(sum(token_ids))


PARAMS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True),
    "penalties": SamplingParams(
        temperature=0.8,
        seed=7,
        max_tokens=40,
        ignore_eos=True,
        frequency_penalty=1.0,
        presence_penalty=0.5,
    ),
    "min_tokens": SamplingParams(temperature=2.0, seed=5, max_tokens=40, min_tokens=30),
    "functions": SamplingParams(seed=5, max_tokens=40, ignore_eos=True, logits_processors=turned),
    "bad words": SamplingParams(
        seed=5,
        max_tokens=40,
        ignore_eos=True,
        bad_words=[a + b for a in LETTERS for b in LETTERS[::2]],
        logit_bias={index + 67: 4.0 for index in range(20)},
    ),
    "structure": SamplingParams(
        seed=5,
        max_tokens=60,
        ignore_eos=True,
        structured_outputs=StructuredOutputsParams(regex="[a-z]{30}[0-9]{20}"),
    ),
}


def deltas_of(engine, inbox):
    while True:
        while inbox:
            delta = inbox.popleft()
            yield delta
            if delta.finished:
                return
        engine.core.advance()


def opened(engine):
    stream = engine.open_stream()
    stream.append("some text that is longer than a window of so few tokens")
    return stream


def whole(engine, params):
    return list(opened(engine).generate(params))


def resumed(engine, params, count, tmp_path, *, replayed=0):
    """The turn, moved after ``count`` tokens to another stream, saved ``replayed`` tokens ago."""
    stream, inbox, deltas = opened(engine), DeltaQueue(), []
    saved, num_saved = None, 0
    stream.inner.start_turn(params, inbox)
    for delta in deltas_of(engine, inbox):
        deltas.append(delta)
        tokens = flat(deltas)[0]
        if saved is None and len(tokens) >= count - replayed:
            write_stream_file(tmp_path / "stream", stream.inner.snapshot(in_turn=True))
            saved, num_saved = read_stream(tmp_path / "stream")[1], len(tokens)
        if len(tokens) >= count:
            break
    stream.close()
    other, inbox = Stream(engine.intake.restore_stream(saved), engine._caller), DeltaQueue()
    if tokens[num_saved:]:
        other.append(tokens[num_saved:])
    generated = tokens if params.structured_outputs is not None else ()
    other.inner.start_turn(params, inbox, num_generated=len(tokens), generated=generated)
    return deltas + list(deltas_of(engine, inbox)), other


def flat(deltas):
    tokens = [t for delta in deltas for t in delta.delta_token_ids]
    return tokens, "".join(delta.delta_text for delta in deltas), deltas[-1].finish_reason


@pytest.mark.parametrize(("num_decode_steps", "ahead"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("replayed", [0, 6])
@pytest.mark.parametrize("name", list(PARAMS))
def test_a_resumed_turn_is_the_turn(make_engine, tmp_path, name, replayed, num_decode_steps, ahead):
    engine = make_engine(num_decode_steps=num_decode_steps)
    engine.core.executor.runs_ahead = ahead  # a launch may be under way when the stream is saved
    expected = flat(whole(engine, PARAMS[name]))
    for count in (7, 23, 34):  # the last is more than the window holds
        result, stream = resumed(engine, PARAMS[name], count, tmp_path, replayed=replayed)
        assert flat(result) == expected
        stream.close()


@pytest.mark.parametrize("min_tokens", [0, 19])
def test_stop_strings_across_the_interruption(make_engine, tmp_path, min_tokens):
    engine = make_engine()
    text = flat(whole(engine, PARAMS["greedy"]))[1]
    stop = [text[12:18], text[18:24]]
    params = SamplingParams(
        temperature=0.0, max_tokens=40, ignore_eos=True, stop=stop, min_tokens=min_tokens
    )
    expected = flat(whole(engine, params))
    assert expected[2] == "stop"
    for count in range(10, len(expected[0])):
        assert flat(resumed(engine, params, count, tmp_path, replayed=3)[0]) == expected


def test_min_tokens_counts_those_that_are_not_looked_at_again(folder):
    params = SamplingParams(max_tokens=2000, min_tokens=1000, stop="b")
    turn = Turn(request_id="a", index=0, params=params)
    tokenizer = load_tokenizer(folder, "mine")
    [before, end] = tokenizer.encode("ab")
    turn.begin_text(tokenizer, [before] * 600, 999)
    assert [turn.ends_with(end) for _ in range(2)] == [False, True]
