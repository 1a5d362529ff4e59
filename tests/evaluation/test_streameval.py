"""StreamEval: what is told and asked, what counts as right, and what the window decides."""

from __future__ import annotations

import itertools
import json

import pytest

from paged_stream.evaluation import dialogue, streameval
from paged_stream.evaluation.dialogue import (
    Pair,
    answer,
    longest,
    measure_dialogue,
    read_pairs,
)
from paged_stream.evaluation.streameval import LINES_PER_QUESTION, NUM_NAMES, ask, registers
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.chat_options import ChatOptions


def first(count: int, seed: int = 0) -> list[streameval.Register]:
    return list(itertools.islice(registers(seed), count))


def test_lines_are_told_apart_by_their_names():
    lines = first(2 * NUM_NAMES)
    names = [line.name for line in lines]
    assert len(set(names[:NUM_NAMES])) == NUM_NAMES
    assert names[:NUM_NAMES] == names[NUM_NAMES:]  # far more lines later
    assert all(len(line.content) == 5 and line.content.isdigit() for line in lines)
    assert first(50, seed=0) == first(50, seed=0) != first(50, seed=1)


def test_a_question_leads_up_to_the_number_as_the_line_does():
    line = first(1)[0]
    assert line.content in line.line and line.content not in line.question
    lead = line.line[: line.line.index(line.content)]
    assert line.question.endswith(lead)


@pytest.mark.parametrize(
    ("text", "right"), [("12345", True), (" 12345\n", True), ("1234", False), ("12345 6", False)]
)
def test_only_the_whole_number_counts(text, right):
    assert streameval.Register("calm-bird", "12345").is_answer(text) is right


class Parrot:
    """Answers from what is visible alone, as a model that reads perfectly would."""

    def __init__(self, engine):
        self._engine = engine

    def __call__(self, stream):
        sequence = stream.inner._sequence
        visible = self._engine.tokenizer.decode(list(sequence.visible_token_ids()))
        lead = visible[visible.rindex("The REGISTER") :]
        found = visible.find(lead)
        stream.append("\n")
        return visible[found + len(lead) :][:5] if found < visible.rindex("The REGISTER") else ""


@pytest.mark.parametrize("sinks", [0, 4])
def test_recall_is_whole_within_the_window_and_zero_past_it(make_engine, monkeypatch, sinks):
    """With a reader that never errs: so it is the window that decides, and the counts tell it."""
    engine = make_engine(
        num_sink_tokens=sinks, window_size=900, max_num_batched_tokens=512, max_num_seqs=1
    )
    monkeypatch.setattr(streameval, "answer", Parrot(engine))
    near, far = (ask(engine, distance, questions=4) for distance in (3, 40))
    assert (near.hits, near.visible, near.visible_hits, near.gone) == (4, 4, 4, 0)
    assert (far.hits, far.visible, far.gone, far.gone_hits) == (0, 0, 4, 0)
    assert near.recall == 1.0 and far.recall == 0.0


def test_pinned_lines_stay_visible(make_engine, monkeypatch):
    line = first(1)[0].line
    engine = make_engine(
        num_sink_tokens=len(line),  # the tiny model's tokens are letters
        window_size=200,
        max_num_batched_tokens=512,
        max_num_seqs=1,
    )
    monkeypatch.setattr(streameval, "answer", Parrot(engine))
    recall = ask(engine, LINES_PER_QUESTION - 1, questions=1)
    assert (recall.hits, recall.visible, recall.gone) == (1, 1, 0)


def test_each_question_is_about_another_line(make_engine, monkeypatch):
    asked: list[str] = []
    question = streameval.Register.question

    def noted(register):
        asked.append(register.name)
        return question.fget(register)

    monkeypatch.setattr(streameval.Register, "question", property(noted))
    engine = make_engine(max_num_batched_tokens=512, max_num_seqs=1)
    recall = ask(engine, 12, questions=3)
    told = [line.name for line in first(40)]
    # Two rounds of ten are told before there is a line 12 lines back.
    assert asked == [told[19 - 12], told[29 - 12], told[39 - 12]]
    assert recall.questions == 3


@pytest.mark.parametrize("distance", [-1, NUM_NAMES])
def test_distances_that_cannot_be_asked(distance):
    with pytest.raises(ValueError, match="distances must be at least 0"):
        streameval.check_distances([0, distance])


# Dialogues

PAIRS = [
    Pair("what is it?", "it", "that is it."),
    Pair("and then?", "nothing", "nothing."),
    Pair("why?", "because", "because of it."),
]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("San Juan", True),
        ('The capital is "san juan".', True),
        ("San Juan\nIs there more?", True),
        ("San Juanito", False),
        ("San", False),
        ("", False),
    ],
)
def test_an_answer_stands_whole_in_what_is_said(text, right):
    assert Pair("?", "San Juan", "San Juan").is_right(text) is right


def test_an_answer_may_end_in_what_is_no_letter():
    assert Pair("?", "St. John's", "It is St. John's.").is_right("st. john's!")
    assert Pair("?", "C++", "C++").is_right("In C++.")


def test_pairs_are_read(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(
        '\ufeff{"question": "a\u2028?", "answer": " b "}\r\n\r\n'
        '{"question": "c", "answer": "d", "reply": "It is d."}\r\n',
        encoding="utf-8",
    )
    assert read_pairs(path) == [Pair("a\u2028?", "b", "b"), Pair("c", "d", "It is d.")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "c"}', "line 2: answer must be a string .* got None"),
        ('{"question": "c", "answer": 5}', "line 2: answer must be a string .* got 5"),
        ('{"question": "", "answer": "d"}', "line 2: question must be a string .* got ''"),
        ('{"question": "c", "answer": "d", "reply": null}', "line 2: reply must be a string"),
        ('["c", "d"]', "line 2: expected"),
        ("c", "line 2: expected"),
        ('{"question": "c", "answer": " "}', "line 2: answer must be a string that is not empty"),
        ('{"question": "c", "answer": "d", "reply": "e"}', "line 2: reply must have the answer"),
    ],
)
def test_pairs_that_are_wrong(tmp_path, line, message):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n' + line)
    with pytest.raises(ValueError, match=message):
        read_pairs(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no questions"):
        read_pairs(path)


def test_every_answer_is_what_the_conversation_with_right_replies_gets(make_engine):
    engine = make_engine(window_size=200, max_num_batched_tokens=256)
    params = SamplingParams(temperature=0.0, max_tokens=5)
    messages = []
    with engine.open_stream() as stream:
        for pair in PAIRS:
            messages.append({"role": "user", "content": pair.question})
            with engine.open_stream() as fresh:
                expected = "".join(delta.delta_text for delta in fresh.chat(messages, params))
            assert answer(stream, pair, params) == expected
            messages.append({"role": "assistant", "content": pair.reply})
        seen = engine.tokenizer.decode(list(stream.inner._sequence.visible_token_ids()))
    written = engine.tokenizer.render_chat_template(
        messages, ChatOptions(add_generation_prompt=False)
    )
    assert seen == written.replace("</s>", "")  # special tokens are not decoded


def test_a_dialogue_is_one_stream_and_one_shot_is_many(make_engine):
    engine = make_engine(window_size=200, max_num_batched_tokens=256, max_num_seqs=1)
    row = measure_dialogue(engine, "4+200", PAIRS, answer_tokens=5)
    alone = measure_dialogue(engine, "one-shot", PAIRS, answer_tokens=5, one_shot=True)
    assert row["rounds"] == alone["rounds"] == len(row["hits"]) == 3
    assert row["tokens"] > 2 * alone["tokens"]
    assert row["tokens"] <= sum(longest(engine.encode, pair, 5) for pair in PAIRS)
    assert alone["tokens"] <= max(longest(engine.encode, pair, 5) for pair in PAIRS)
    assert engine.stats().num_streams == 0
    assert json.dumps(row)


def test_hits_are_counted_round_by_round(make_engine, monkeypatch):
    engine = make_engine(window_size=200, max_num_batched_tokens=256, max_num_seqs=1)
    said = iter(["that is it", "what?", "because"])
    monkeypatch.setattr(dialogue, "answer", lambda *_: next(said))
    row = measure_dialogue(engine, "4+200", PAIRS, answer_tokens=5)
    assert row["hits"] == [1, 0, 1]
    assert (row["exact_match"], row["late_match"]) == (2 / 3, 1 / 2)
