"""Batches on Ray: every row exactly once, whoever dies, and what the user sees of it."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from paged_stream.batch import generate_dataset
from paged_stream.batch.parts import RowFailure
from paged_stream.batch.row_runner import RowRunner
from paged_stream.batch.run import run_batch
from paged_stream.batch.run_folder import MANIFEST
from paged_stream.batch.run_lock import LOCK
from paged_stream.batch.shard_run import ShardRun
from paged_stream.cli import main
from paged_stream.commands.batch import SOME_BAD, TOO_MANY_BAD
from tests.batch.corpora import (
    ENGINE,
    config,
    errors,
    files,
    outputs,
    run_here,
    texts,
    write_lines,
)
from tests.batch.killed_batches import kill_a_worker
from tests.batch.object_store import ObjectStore, serving

ROOT = Path(__file__).parent.parent.parent
PARAMS = {"max_tokens": 40}
OPTIONS = [
    *("--max-tokens", "40", "--temperature", "1", "--seed", "3", "--ignore-eos"),
    *("--num-sink-tokens", "4", "--window-size", "24", "--block-size", "8", "--dtype", "float32"),
    *("--max-num-seqs", "4", "--kv-cache-memory-bytes", "4194304", "--shard-bytes", "600"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rows = [{"id": i, "prompt": text} for i, text in enumerate(texts(120))]
    rows[17] = {"id": 17}
    rows[90] = b'{"id": 90, "prompt": "\xff"}'
    return write_lines(tmp_path_factory.mktemp("source") / "in.jsonl", rows)


def batch(folder, output, source, **settings):
    """The batch that `OPTIONS` describe."""
    engine = {"max_num_batched_tokens": 1024, "chunk_size": 256}
    return config(folder, output, source, params=PARAMS, engine=engine, **settings)


def run_undisturbed(folder, source, output, **settings):
    """Files of the same batch, computed in this process."""
    run_here(batch(folder, output, source, **settings))
    assert len(outputs(output)) == 118 and len(errors(output)) == 2
    return files(output)


@pytest.fixture(scope="module")
def undisturbed(folder, source, tmp_path_factory):
    return run_undisturbed(folder, source, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(params=["a file", "a compressed file", "small files", "objects"])
def corpus(source, tmp_path, request):
    """The rows of `source`, as they may lie somewhere."""
    data = source.read_bytes()
    if request.param == "a file":
        yield source
    elif request.param == "a compressed file":
        path = tmp_path / "in.jsonl.gz"
        path.write_bytes(gzip.compress(data))
        yield path
    else:
        lines = data.splitlines(keepends=True)
        parts = {f"in/{i:03}.jsonl": b"".join(lines[i : i + 3]) for i in range(0, 120, 3)}
        for name, part in parts.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(part)
        if request.param == "small files":
            yield tmp_path / "in"
        else:
            with serving(ObjectStore(parts)) as options:
                yield f"s3://key:secret@bucket/in{options}"


def start_halting(folder, source, output, count, pipe, options=()):
    """Start a driver whose worker halts when ``count`` parts are committed, and says so."""
    os.mkfifo(pipe)
    arguments = ["batch", "--input", str(source), "--output", str(output), *OPTIONS, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.batch.killed_batches", str(output), str(count), str(pipe)]
        + [*arguments, "--model", str(folder)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )


def kill_halting(driver, pipe):
    """Kill a driver that has halted, and Ray, which it has started."""
    assert pipe.read_text() == "halted"
    others = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    for process in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    driver.wait()


@pytest.mark.ray
def test_a_worker_is_killed(ray, folder, source, tmp_path, undisturbed, monkeypatch):
    output, mark = tmp_path / "out", tmp_path / "killed"
    kill_a_worker(monkeypatch, output, 2, mark)
    summary = run_batch(batch(folder, output, source, num_replicas=2))
    assert mark.exists()
    assert files(output) == undisturbed
    assert (summary.num_rows, summary.num_bad, summary.num_resumed) == (118, 2, 0)
    manifest = json.loads((output / MANIFEST).read_text())
    assert manifest["status"] == "complete" and manifest["totals"]["rows"] == 118
    assert len(list((output / "shards").iterdir())) == summary.num_parts > 10
    assert not list((output / "tmp").iterdir())


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_is_lost(folder, source, tmp_path, undisturbed):
    """What its engine had begun is computed on the node that is left."""
    output = tmp_path / "out"
    command = [sys.executable, "-m", "tests.batch.lost_node", str(folder), str(source)]
    ended = subprocess.run(
        [*command, str(output), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert (tmp_path / "done").exists(), ended.stderr[-3000:]
    assert files(output) == undisturbed


@pytest.mark.ray
def test_the_driver_is_killed(ray, folder, corpus, tmp_path):
    undisturbed = run_undisturbed(folder, corpus, tmp_path / "undisturbed")
    output, pipe, done = tmp_path / "out", tmp_path / "pipe", 3
    kill_halting(start_halting(folder, corpus, output, done, pipe), pipe)
    committed = {path: path.stat().st_mtime_ns for path in (output / "data").iterdir()}
    (output / "tmp" / "left").write_text("of an unfinished write")
    assert len(list((output / "shards").iterdir())) == done

    summary = run_batch(batch(folder, output, corpus, resume=True))
    assert summary.num_resumed == done and summary.num_rows == 118
    assert files(output) == undisturbed
    records = sorted((output / "shards").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for record in records[:done]:
        data = output / json.loads(record.read_text())["file"]
        assert committed[data] == data.stat().st_mtime_ns, "a committed shard was computed again"
    assert not list((output / "tmp").iterdir())


def rows_of(source):
    return [json.loads(line) for line in source.read_text(errors="replace").splitlines()]


def as_requests(row):
    """A row as one of OpenAI's batch file; those that are bad stay so."""
    messages = [{"role": "user", "content": row.get("prompt", 5)}]
    if "\ufffd" in str(messages):
        messages = None
    body = {"model": "gpt", "messages": messages, "n": 1 + row["id"] % 2}
    url = "/v1/chat/completions"
    return {"custom_id": f"r{row['id']}", "method": "POST", "url": url, "body": body}


def with_parameters(row):
    row["how"] = [{"max_tokens": 7, "temperature": 0.5}, {"seed": row["id"]}, None][row["id"] % 3]
    if "\ufffd" in row.get("prompt", ""):
        row["how"] = 5
    return row


MODES = {
    "requests": (as_requests, {"task": "openai"}, ["--task", "openai"]),
    "rows with parameters": (
        with_parameters,
        {"sampling_columns": ["how"]},
        ["--sampling-columns", "how"],
    ),
}


@pytest.mark.ray
@pytest.mark.parametrize("mode", MODES)
def test_rows_that_say_what_they_want_survive(ray, folder, source, tmp_path, monkeypatch, mode):
    """A driver is killed, and then a worker."""
    change, settings, options = MODES[mode]
    corpus = write_lines(tmp_path / "in.jsonl", [change(row) for row in rows_of(source)])
    undisturbed = run_undisturbed(folder, corpus, tmp_path / "undisturbed", **settings)
    output, pipe, mark = (tmp_path / name for name in ("out", "pipe", "mark"))
    done = 3
    kill_halting(start_halting(folder, corpus, output, done, pipe, options), pipe)
    kill_a_worker(monkeypatch, output, 6, mark)
    summary = run_batch(batch(folder, output, corpus, resume=True, **settings))
    assert mark.exists() and summary.num_resumed == done
    assert files(output) == undisturbed


@pytest.mark.ray
def test_files_that_are_added_survive(ray, folder, source, tmp_path, monkeypatch):
    """A driver is killed while it computes what was added, and then a worker."""
    corpus, output, pipe, mark = (tmp_path / name for name in ("in", "out", "pipe", "mark"))
    corpus.mkdir()
    lines = source.read_bytes().splitlines(keepends=True)
    (corpus / "b.jsonl").write_bytes(b"".join(lines[:60]))
    run_here(batch(folder, output, corpus))
    before = files(output)
    (corpus / "a.jsonl").write_bytes(b"".join(lines[60:]))
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(output, undisturbed)
    run_here(batch(folder, undisturbed, corpus))
    done = len(list((output / "shards").iterdir())) + 2
    kill_halting(start_halting(folder, corpus, output, done, pipe, ["--resume"]), pipe)
    kill_a_worker(monkeypatch, output, done + 3, mark)
    run_batch(batch(folder, output, corpus, resume=True))
    assert mark.exists() and files(output) == files(undisturbed)
    assert {name: files(output)[name] for name in before} == before
    assert sorted(row["id"] for row in outputs(output)) == [
        i for i in range(120) if i not in (17, 90)
    ]


@pytest.mark.ray
def test_a_retry_survives(ray, folder, source, tmp_path, undisturbed, monkeypatch):
    """Every third row had failed. A driver is killed while it computes them, and then a worker."""
    output, pipe, mark = (tmp_path / name for name in ("out", "pipe", "mark"))
    result, count = RowRunner._result, itertools.count()

    async def fail(self, rows, index):
        is_bad = next(count) % 3 == 0
        return RowFailure("not today") if is_bad else await result(self, rows, index)

    with monkeypatch.context() as patch:
        patch.setattr(RowRunner, "_result", fail)
        run_here(batch(folder, output, source))
    assert len(errors(output)) > 30
    num_parts = len(list((output / "shards").iterdir()))
    options = ["--resume", "--retry-errors"]
    kill_halting(start_halting(folder, source, output, num_parts, pipe, options), pipe)
    kill_a_worker(monkeypatch, output, num_parts, mark)
    summary = run_batch(batch(folder, output, source, resume=True))
    assert mark.exists() and files(output) == undisturbed
    assert summary.num_rows == 118 and 0 < summary.done.new_rows < 60


@pytest.mark.ray
def test_what_the_user_sees(ray, folder, source, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["batch", "--input", str(source), "--output", str(output), "--model", str(folder)]
    arguments += [*OPTIONS, "--max-tokens", "5"]
    assert main([*arguments, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "generate from column 'prompt', up to 5 tokens" in plan
    assert "replicas          1 engines, 2 threads each" in plan and "KV per stream" in plan
    assert plan.count("\nshard 0 row ") == 5 and not output.exists()

    assert main(arguments) == SOME_BAD
    out, err = capsys.readouterr()
    assert "rows           118\nbad rows       2 (see errors/)" in out
    summary = json.loads((output / "summary.json").read_text())
    assert summary["new_rows"] == 119 and summary["new_output_tokens"] == 5 * 118
    assert 0 < summary["rows_per_second"] == 119 / summary["seconds"]
    assert f"{summary['rows_per_second']:,.1f} rows" in out and summary["start_seconds"] > 0
    assert " rows" in err and "100%" in err

    assert main(arguments) == 2
    assert "holds a run (complete); pass resume" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--temperature", "0.5"]) == 2
    assert "resume: temperature is 0.5, but" in capsys.readouterr().err
    before = files(output)
    assert main([*arguments, "--resume"]) == SOME_BAD
    assert "of them from before" in capsys.readouterr().out and files(output) == before


@pytest.mark.ray
def test_too_many_bad_rows_end_a_run_that_can_go_on(ray, folder, source, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["batch", "--input", str(source), "--output", str(output), "--model", str(folder)]
    arguments += [*OPTIONS, "--max-tokens", "5"]
    assert main([*arguments, "--max-errors", "0"]) == TOO_MANY_BAD
    assert "too many bad rows, max_errors is 0" in capsys.readouterr().err
    assert json.loads((output / MANIFEST).read_text())["status"] == "running"
    assert main([*arguments, "--resume", "--max-errors", "2"]) == SOME_BAD
    assert json.loads((output / MANIFEST).read_text())["status"] == "complete"
    assert len(outputs(output)) == 118 and len(errors(output)) == 2
    assert main([*arguments, "--resume", "--max-errors", "1%"]) == TOO_MANY_BAD


@pytest.mark.ray
@pytest.mark.parametrize("what", ["input", "output"])
def test_a_failure_outside_the_program_is_a_line(ray, folder, source, tmp_path, monkeypatch, what):
    copy, output = tmp_path / "in.jsonl", tmp_path / "out"
    copy.write_bytes(source.read_bytes())
    until_done = ShardRun.until_done

    def spoil(*args):
        if what == "input":
            copy.unlink()
        else:
            shutil.rmtree(output / "tmp")
        return until_done(*args)

    monkeypatch.setattr(ShardRun, "until_done", spoil)
    with pytest.raises(ValueError, match="FileNotFoundError: ") as caught:
        run_batch(batch(folder, output, copy))
    assert "\n" not in str(caught.value) and not (output / LOCK).exists()


@pytest.mark.ray
def test_another_model_is_no_resumption(ray, folder, source, tmp_path):
    run_here(batch(folder, tmp_path, source), only=1)
    record = next((tmp_path / "shards").iterdir())
    record.write_text(record.read_text().replace('"weights": "', '"weights": "0'))
    with pytest.raises(ValueError, match="resume: .* has other weights than"):
        run_batch(batch(folder, tmp_path, source, resume=True))


@pytest.mark.ray
def test_other_files_are_no_resumption(folder, source, tmp_path):
    copy = tmp_path / "in.jsonl"
    copy.write_bytes(source.read_bytes())
    run_here(batch(folder, tmp_path / "out", copy), only=1)
    copy.write_bytes(source.read_bytes() + b"{}\n")
    with pytest.raises(ValueError, match="resume: .*in.jsonl has .* bytes, but had"):
        run_batch(batch(folder, tmp_path / "out", copy, resume=True))


@pytest.mark.ray
def test_a_dataset_in_and_a_dataset_out(ray, folder):
    rows = [{"key": i, "prompt": text} for i, text in enumerate(texts(50))]
    rows[7]["prompt"] = ""
    dataset = generate_dataset(
        ray.data.from_items(rows),
        str(folder),
        key_column="key",
        sampling_params=config(folder, Path("out"), Path("in")).sampling_params,
        engine=ENGINE,
    )
    got = sorted(dataset.take_all(), key=lambda row: row["key"])
    assert [row["prompt"] for row in got] == [row["prompt"] for row in rows]
    assert [row["key"] for row in got if row["error"]] == [7]
    assert got[7]["generated_text"] is None and got[7]["error"] == "column 'prompt' is empty"
    assert all(row["output_tokens"] == 12 for row in got if row["key"] != 7)


def test_without_ray(folder, source, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["--input", str(source), "--output", str(tmp_path), "--model", str(folder)]
    assert main(["batch", *arguments, *OPTIONS, "--dry-run"]) == 0
    assert "1 files of jsonl" in capsys.readouterr().out
    assert main(["batch", "--input", "x.jsonl", "--output", "out"]) == 2
    assert 'pip install "paged-stream[ray]"' in capsys.readouterr().err
    with pytest.raises(ImportError, match="this needs Ray"):
        generate_dataset(None, "m")
