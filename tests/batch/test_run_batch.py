"""Batches on Ray: every row exactly once, whoever dies, and what the user sees of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from paged_stream.batch import generate_dataset
from paged_stream.batch.run import run_batch
from paged_stream.batch.run_folder import MANIFEST
from paged_stream.cli import main
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


@pytest.fixture(scope="module")
def undisturbed(folder, source, tmp_path_factory):
    """Files of the same batch, computed in this process."""
    output = tmp_path_factory.mktemp("undisturbed")
    run_here(batch(folder, output, source))
    assert len(outputs(output)) == 118 and len(errors(output)) == 2
    return files(output)


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
    assert len(manifest["shards"]) == summary.num_shards > 10
    assert not list((output / "tmp").iterdir())


@pytest.mark.ray
def test_the_driver_is_killed(ray, folder, source, tmp_path, undisturbed):
    output, pipe, done = tmp_path / "out", tmp_path / "pipe", 3
    os.mkfifo(pipe)
    arguments = ["batch", "--input", str(source), "--output", str(output), *OPTIONS]
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.batch.killed_batches", str(output), str(done), str(pipe)]
        + [*arguments, "--model", str(folder)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    assert pipe.read_text() == "halted"
    others = psutil.Process(driver.pid).children(recursive=True)  # Ray, which it has started
    driver.kill()
    for process in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    driver.wait()
    committed = {path: path.stat().st_mtime_ns for path in (output / "data").iterdir()}
    (output / "tmp" / "left").write_text("of an unfinished write")
    assert len(list((output / "shards").iterdir())) == done

    summary = run_batch(batch(folder, output, source, resume=True))
    assert summary.num_resumed == done and summary.num_rows == 118
    assert files(output) == undisturbed
    records = sorted((output / "shards").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for record in records[:done]:
        data = output / json.loads(record.read_text())["file"]
        assert committed[data] == data.stat().st_mtime_ns, "a committed shard was computed again"
    assert not list((output / "tmp").iterdir())


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

    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "rows           118\nbad rows       2 (see errors/)" in out
    assert " rows" in err and "100%" in err

    assert main(arguments) == 2
    assert "holds a run (complete); pass resume" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--temperature", "0.5"]) == 2
    assert "resume: temperature is 0.5, but" in capsys.readouterr().err
    before = files(output)
    assert main([*arguments, "--resume"]) == 0
    assert "of them from before" in capsys.readouterr().out and files(output) == before


@pytest.mark.ray
def test_another_model_is_no_resumption(ray, folder, source, tmp_path):
    run_here(batch(folder, tmp_path, source), only=range(1))
    record = next((tmp_path / "shards").iterdir())
    record.write_text(record.read_text().replace('"weights": "', '"weights": "0'))
    with pytest.raises(ValueError, match="resume: .* has other weights than"):
        run_batch(batch(folder, tmp_path, source, resume=True))


@pytest.mark.ray
def test_other_files_are_no_resumption(folder, source, tmp_path):
    copy = tmp_path / "in.jsonl"
    copy.write_bytes(source.read_bytes())
    run_here(batch(folder, tmp_path / "out", copy), only=range(1))
    copy.write_bytes(source.read_bytes() + b"{}\n")
    with pytest.raises(ValueError, match="resume: input is .*in.jsonl"):
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


def test_without_ray(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["batch", "--input", "x.jsonl", "--output", "out"]) == 2
    assert 'pip install "paged-stream[ray]"' in capsys.readouterr().err
    with pytest.raises(ImportError, match="this needs Ray"):
        generate_dataset(None, "m")
