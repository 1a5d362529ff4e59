"""Equal rows share one answer, which does not depend on where it was computed."""

from __future__ import annotations

import asyncio

import pytest

from paged_stream.batch.answers import Answers
from paged_stream.batch.row_runner import RowRunner
from tests.batch.corpora import config, files, outputs, run_here, write_lines

PROMPTS = ["abc", "once upon", "x"]


@pytest.fixture
def source(tmp_path):
    rows = [{"prompt": PROMPTS[n % 3], "temperature": [None, 0.7][n % 2]} for n in range(60)]
    rows[7] = {"prompt": ""}
    return write_lines(tmp_path / "in.jsonl", rows)


@pytest.fixture
def computed(monkeypatch):
    """What engines were asked to compute."""
    seen, compute = [], RowRunner._computed

    async def note(self, params, ids):
        seen.append((params.temperature, tuple(ids)))
        return await compute(self, params, ids)

    monkeypatch.setattr(RowRunner, "_computed", note)
    return seen


def test_each_is_computed_once(folder, source, tmp_path, computed):
    settings = {"sampling_columns": ["temperature"], "dedup": True}
    run_here(config(folder, tmp_path / "out", source, **settings))
    assert len(computed) == len(set(computed)) == 6
    rows = outputs(tmp_path / "out")
    assert len(rows) == 59
    answers = {(r["prompt"], r["temperature"]): r["generated_text"] for r in rows}
    assert len(set(answers.values())) == 6
    for row in rows:
        assert row["generated_text"] == answers[row["prompt"], row["temperature"]]
    # Broken off and gone on with, where the first answers are not remembered.
    run_here(config(folder, tmp_path / "again", source, **settings), only=2)
    run_here(config(folder, tmp_path / "again", source, **settings, resume=True))
    assert files(tmp_path / "again") == files(tmp_path / "out")
    assert len(computed) > 12


def test_without_it_equal_rows_are_rows_of_their_own(folder, source, tmp_path, computed):
    run_here(config(folder, tmp_path / "out", source))
    assert len(computed) == 59
    assert len({row["generated_text"] for row in outputs(tmp_path / "out")}) > 6


def test_answers_to_requests_have_ids(folder, tmp_path):
    with pytest.raises(ValueError, match="dedup must be left out of task='openai'"):
        config(folder, tmp_path / "out", tmp_path, task="openai", dedup=True)


def test_a_question_that_fails_is_asked_again():
    async def ask():
        answers, gate, tries = Answers(2), asyncio.Event(), []

        async def find_out():
            tries.append(len(tries))
            await gate.wait()
            if len(tries) == 1:
                raise ValueError("no")
            return tries[-1]

        both = [asyncio.ensure_future(answers.get(b"a", find_out)) for _ in range(2)]
        await asyncio.sleep(0)
        gate.set()
        told = await asyncio.gather(*both, return_exceptions=True)
        assert [type(each) for each in told] == [ValueError, ValueError]
        assert await answers.get(b"a", find_out) == await answers.get(b"a", find_out) == 1
        for name in (b"b", b"c", b"a"):  # of which two are remembered
            await answers.get(name, find_out)
        assert len(tries) == 5

    asyncio.run(ask())
