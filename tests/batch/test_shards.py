"""Cutting and reading: every row once, in whatever shards, and bad ones told apart."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from paged_stream.batch import reading
from paged_stream.batch.reading import ShardRows, read_shard
from paged_stream.batch.shards import JSONL, PARQUET, TEXT, InputFile, cut, find_files

LIMIT = 1 << 20


def read_all(format, files, shard_bytes, limit=LIMIT):
    """Good rows in order, and bad ones, after a trip through bytes."""
    good, bad = [], []
    for shard in cut(format, files, shard_bytes):
        rows = ShardRows.from_bytes(read_shard(shard, limit).to_bytes())
        assert sorted([*rows.rows, *(b.row for b in rows.bad)]) == list(
            range(len(rows.rows) + len(rows.bad))
        )
        good += rows.values(shard.format)
        bad += rows.bad
    return good, bad


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=20),
    shard_bytes=st.integers(1, 200),
    read_bytes=st.integers(1, 64),
    ends=st.booleans(),
)
@settings(max_examples=60)
def test_every_line_is_in_one_shard(tmp_path_factory, lengths, shard_bytes, read_bytes, ends):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    rows = [{"i": i, "x": "ü" * length} for i, length in enumerate(lengths)]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n" * ends
    path.write_text(text)
    files = [InputFile(str(path), path.stat().st_size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_READ_BYTES", read_bytes)
        assert read_all(JSONL, files, shard_bytes) == (rows, [])


def test_bad_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = [
        b'\xef\xbb\xbf{"a": 1}',
        b"",
        b"{broken",
        b'{"a": "\xff"}',
        b"[1, 2]",
        b'{"a": "' + b"x" * 100 + b'"}',
        b"[" * 40,
        b'{"a": 2}\r',
    ]
    path.write_bytes(b"\n".join(lines))
    good, bad = read_all(JSONL, [InputFile(str(path), path.stat().st_size)], 1000, limit=50)
    assert good == [{"a": 1}, {"a": 2}]
    offsets = [sum(len(line) + 1 for line in lines[:row]) for row in range(len(lines))]
    assert [b.location for b in bad] == [f"{path}:byte {offsets[row]}" for row in range(1, 7)]
    reasons = ["empty line", "no JSON", "not UTF-8", "must be a JSON object, got list", "larger"]
    assert all(word in b.reason for word, b in zip(reasons, bad[:5], strict=True))


def test_compressed_lines_are_one_shard(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    rows = [{"i": i} for i in range(50)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    path.write_bytes(whole)
    assert read_all(JSONL, [InputFile(str(path), len(whole))], 10) == (rows, [])
    path.write_bytes(whole[:-20])
    _, bad = read_all(JSONL, [InputFile(str(path), len(whole) - 20)], 10)
    assert "nothing behind it" in bad[0].reason


@pytest.mark.parametrize("group_size", [1, 7, 100])
@pytest.mark.parametrize("shard_bytes", [1, 300, 100_000])
def test_every_row_of_parquet_is_in_one_shard(tmp_path, group_size, shard_bytes):
    path = tmp_path / "x.parquet"
    table = pa.table({"i": list(range(60)), "x": [[i, i + 1] for i in range(60)]})
    parquet.write_table(table, path, row_group_size=group_size)
    files = [InputFile(str(path), path.stat().st_size)]
    assert read_all(PARQUET, files, shard_bytes) == (table.to_pylist(), [])
    shards = cut(PARQUET, files, shard_bytes)
    assert sum(shard.num_bytes for shard in shards) <= files[0].size
    assert (len(shards) > 1) == (shard_bytes < 100_000)


def test_damaged_parquet_pages_are_bad_rows(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"x": ["text" * 10] * 40}), path, compression="none")
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)
    good, bad = read_all(PARQUET, [InputFile(str(path), len(data))], 1 << 20)
    assert not good and len(bad) == 40 and "cannot be decoded" in bad[0].reason
    path.write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match="is no Parquet file"):
        cut(PARQUET, [InputFile(str(path), 17)])


def test_text_files(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "deep" / "b.md").write_text("second\n")
    (tmp_path / "c.log").write_bytes(b"\xff\xfe")
    (tmp_path / ".hidden").write_text("no")
    format, files = find_files([str(tmp_path)])
    assert format == TEXT and len(files) == 3
    good, bad = read_all(TEXT, files, 1)
    assert [row["text"] for row in good] == ["first", "second\n"]
    assert good[1]["path"] == str(tmp_path / "deep" / "b.md")
    assert [b.location for b in bad] == [str(tmp_path / "c.log")] and "not UTF-8" in bad[0].reason


def test_inputs_by_uri(tmp_path):
    (tmp_path / "a b.txt").write_text("text")
    plain = find_files([str(tmp_path)])
    assert find_files([f"file://{tmp_path}"])[1][0].path == f"file://{tmp_path}/a b.txt"
    assert read_all(*find_files([f"file://{tmp_path}"]), 9)[0][0]["text"] == "text"
    assert plain[1][0].path == str(tmp_path / "a b.txt")


def test_inputs_that_cannot_be(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}")
    (tmp_path / "y.txt").write_text("text")
    (tmp_path / "z.bin").write_text("?")
    (tmp_path / "empty").mkdir()
    for inputs, message in [
        (["nowhere"], "input 'nowhere' does not exist"),
        ([tmp_path / "empty"], "input must have files"),
        ([tmp_path], "must be all JSON lines, all Parquet or all text"),
        ([tmp_path / "z.bin"], "must be all JSON lines, all Parquet or all text"),
        (["ftp://host/x"], "ftp://host/x: "),
    ]:
        with pytest.raises(ValueError, match=message):
            find_files([str(path) for path in inputs])


def test_cutting_depends_on_the_files_alone(tmp_path):
    files = [InputFile(f"{i}.jsonl", 1000 * i) for i in range(1, 5)]
    shards = cut(JSONL, files, 900)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert sum(shard.num_bytes for shard in shards) == 10_000
    assert cut(JSONL, files, 900) == shards
    assert len(cut(JSONL, [InputFile("x.jsonl", 10 << 30)])) == 1024
