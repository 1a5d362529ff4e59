"""Runs that go on: with more files, with rows that had failed, and with one driver at a time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from paged_stream.batch import row_runner
from paged_stream.batch.files import OutputFolder
from paged_stream.batch.formats import FileKind
from paged_stream.batch.inputs import InputFile, InputFiles, Place
from paged_stream.batch.listing import in_recorded_order, to_parquet
from paged_stream.batch.parts import RowFailure
from paged_stream.batch.plan import make_plan
from paged_stream.batch.run_folder import RunFolder, check_settings
from paged_stream.batch.run_lock import LOCK, RunLock
from paged_stream.batch.shards import cut, part_bytes
from tests.batch.corpora import config, errors, files, outputs, run_here, texts, write_lines

# More files


def listed(sizes):
    """Files of these sizes, by name."""
    found, place = InputFiles(), Place("/in", "/in")
    for name, size in sorted(sizes.items()):
        found.add(InputFile(place, f"/in/{name}.jsonl", size, FileKind("jsonl")))
    return found


def shards_of(found):
    return list(cut(found, part_bytes(found, None)))


SIZES = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.integers(0, 300_000), min_size=1, max_size=8
)


@given(SIZES, SIZES, SIZES)
def test_files_that_are_added_leave_the_shards_that_there_are(first, second, third):
    whole, known = {}, None
    for sizes in (first, second, third):
        before = [] if known is None else shards_of(known)
        whole = sizes | whole
        found = listed(whole)
        known = found if known is None else in_recorded_order(found, to_parquet(known))
        after = shards_of(known)
        assert after[: len(before)] == before
        pieces = [(p.file.path, p.start) for shard in after for p in shard.pieces if p.file.size]
        assert len(set(pieces)) == len(pieces)
        assert sum(shard.num_bytes for shard in after) == sum(whole.values())
        again = in_recorded_order(listed(whole), to_parquet(known))
        assert shards_of(again) == after and again.starts == known.starts


def test_files_that_change_or_go_are_refused():
    listing = to_parquet(listed({"a": 5, "b": 6}))
    with pytest.raises(ValueError, match="resume: input lacks /in/a.jsonl"):
        in_recorded_order(listed({"b": 6, "c": 7}), listing)
    with pytest.raises(ValueError, match="resume: /in/b.jsonl has 9 bytes, but had 6"):
        in_recorded_order(listed({"a": 5, "b": 9}), listing)


def write_folder(folder, names, start=0):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names, start):
        rows = [{"id": f"{name}{i}", "prompt": text} for i, text in enumerate(texts(9 + number))]
        write_lines(folder / f"{name}.jsonl", rows)


def test_only_files_that_were_added_are_computed(folder, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    write_folder(source, "bd")
    run_here(config(folder, output, source))
    before = files(output)
    write_folder(source, "ace", 2)
    rows = [{"id": "f0", "prompt": "x", "new": 1}]
    write_lines(source / "f.jsonl", rows)
    run_here(config(folder, output, source), only=2)  # and then somebody dies
    run_here(config(folder, output, source))
    after, got = files(output), outputs(output)
    assert {name: after[name] for name in before} == before and len(after) > len(before) + 4
    expected = [json.loads(line)["id"] for path in source.iterdir() for line in path.open()]
    assert sorted(row["id"] for row in got) == sorted(expected)
    assert got[-1]["_extra"] == '{"new": 1}'  # columns are those of the beginning


def test_tables_that_are_added_have_the_same_columns(folder, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    parquet.write_table(pa.table({"prompt": ["a"], "x": [1]}), source / "b.parquet")
    run_here(config(folder, output, source))
    folder_of_run = RunFolder(str(output), "parquet")
    parquet.write_table(pa.table({"prompt": ["b"], "x": [1]}), source / "a.parquet")
    assert len(make_plan(config(folder, output, source), folder_of_run.record()).input.shards) == 2
    parquet.write_table(pa.table({"prompt": ["b"], "x": [1.5]}), source / "c.parquet")
    begun = folder_of_run.record()
    plan = make_plan(config(folder, output, source), begun)
    with pytest.raises(ValueError, match="resume: types is .*'x': 'double'.*'x': 'int64'"):
        check_settings(begun.settings, plan.settings(), "out")


# Rows that had failed


@pytest.fixture
def flaky(monkeypatch):
    """Rows whose prompt begins with a letter of ``failing`` fail; all others are noted."""

    class Flaky:
        failing = ""
        computed: list[str] = []

    result = row_runner.RowRunner._result

    async def noted(self, rows, index):
        prompt = rows[index].values["prompt"]
        if prompt[0] in Flaky.failing:
            return RowFailure("not today")
        Flaky.computed.append(prompt)
        return await result(self, rows, index)

    monkeypatch.setattr(row_runner.RowRunner, "_result", noted)
    Flaky.computed = []
    return Flaky


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_only_rows_that_failed_are_computed_again(folder, tmp_path, flaky, format):
    prompts = [f"{'abc'[i % 3]}{text}" for i, text in enumerate(texts(30))] + ["b only"]
    rows = [{"id": i, "prompt": text, "x": i / 3} for i, text in enumerate(prompts)]
    source = write_lines(tmp_path / "in.jsonl", [*rows, b"{"])
    settings = {"format": format}
    run_here(config(folder, tmp_path / "undisturbed", source, **settings))
    flaky.failing, flaky.computed = "b", []
    output = tmp_path / "out"
    run_here(config(folder, output, source, **settings))
    assert len(flaky.computed) == 20 and len(errors(output)) == 12
    run_here(config(folder, output, source, resume=True, **settings))
    assert len(flaky.computed) == 20, "who asks for nothing gets nothing"

    again = {**settings, "resume": True, "retry_errors": True}
    flaky.failing, flaky.computed = "", []
    run_here(config(folder, output, source, **again), only=1)  # and then somebody dies
    run_here(config(folder, output, source, resume=True, **settings))
    assert sorted(flaky.computed) == sorted(text for text in prompts if text[0] == "b")
    assert files(output) == files(tmp_path / "undisturbed")
    (bad,) = errors(output)
    assert "no JSON" in bad["reason"]


def test_a_part_that_was_written_and_not_committed_is_not_computed_again(folder, tmp_path, flaky):
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": text} for text in texts(30)])
    run_here(config(folder, tmp_path / "out", source))
    before = files(tmp_path / "out")
    (tmp_path / "out" / "shards" / "000001-00000.json").unlink()
    flaky.computed = []
    run_here(config(folder, tmp_path / "out", source))
    assert flaky.computed == [] and files(tmp_path / "out") == before


def test_errors_are_retried_of_a_run_that_has_ended(folder, tmp_path):
    with pytest.raises(ValueError, match="retry_errors must go with resume"):
        config(folder, tmp_path, tmp_path, retry_errors=True)


# One driver at a time


@pytest.fixture
def output(tmp_path):
    folder = OutputFolder(str(tmp_path / "out"))
    folder.make()
    return folder


def lock(folder, beat_seconds=0.01, silent_seconds=600.0):
    return RunLock(folder, beat_seconds, silent_seconds)


def test_a_driver_that_lives_keeps_others_out(output):
    with lock(output) as first:
        with pytest.raises(ValueError, match=rf"is being written by .*process {os.getpid()}\)"):
            lock(output).__enter__()
        first.check()
    assert output.read(LOCK) is None
    with lock(output):
        pass


def test_a_driver_that_died_here_is_known_to_be_dead(output):
    code = (
        "import os, sys; from paged_stream.batch.files import OutputFolder\n"
        "from paged_stream.batch.run_lock import RunLock\n"
        "RunLock(OutputFolder(sys.argv[1])).__enter__(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, output.uri], check=False)
    assert output.read(LOCK) is not None
    with lock(output, silent_seconds=math.inf) as second:  # otherwise it would look for ever
        second.check()


def of_elsewhere(folder):
    about = json.loads(folder.read(LOCK))
    content = json.dumps({**about, "machine": "elsewhere", "id": "other"}).encode()
    folder.write(LOCK, lambda stream: stream.write(content))


def test_a_driver_that_is_silent_for_long_is_dead(output):
    with lock(output, beat_seconds=600.0):
        of_elsewhere(output)
        with lock(output, silent_seconds=0.05) as second:
            second.check()


def test_a_driver_that_was_taken_for_dead_stops(output):
    with lock(output) as first:
        while first._thread.is_alive():  # it has not seen that, and may have written over it
            of_elsewhere(output)
        with pytest.raises(ValueError, match="elsewhere .* has taken over the run"):
            first.check()
    assert json.loads(output.read(LOCK))["id"] == "other", "the lock is the other's"


def test_a_change_that_cannot_be_written_is_tried_again(output, monkeypatch):
    write, is_tried = output.write, threading.Event()

    def fail(*args, **how):
        is_tried.set()
        raise OSError("no network")

    with lock(output) as first:
        monkeypatch.setattr(output, "write", fail)
        is_tried.wait()
        monkeypatch.setattr(output, "write", write)
        content = output.read(LOCK)
        while output.read(LOCK) == content:
            pass
        first.check()
