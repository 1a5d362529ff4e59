"""Cutting and reading: every row once, in whatever shards and parts, and bad ones told apart."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from paged_stream.batch import row_files
from paged_stream.batch.columns import ColumnView
from paged_stream.batch.finding import find_files
from paged_stream.batch.input_plan import plan_input
from paged_stream.batch.parts import Part

LIMIT = 1 << 20


def plan(paths, shard_bytes=None, limit=LIMIT, format=None, **view):
    files = find_files([str(path) for path in paths], format)
    return plan_input(files, ColumnView(**view), limit, shard_bytes)


def read_all(paths, shard_bytes=None, limit=LIMIT, format=None, **view):
    """Good rows in order, and bad ones, after a trip through bytes."""
    source = plan(paths, shard_bytes, limit, format, **view)
    good, bad = [], []
    for shard in source.shards:
        parts = [Part.from_bytes(part.to_bytes()) for part in source.reader.parts(shard)]
        assert [part.number for part in parts] == list(range(len(parts)))
        assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
        assert sum(part.num_bytes for part in parts) == shard.num_bytes
        numbers = [sorted([*part.rows, *(b.row for b in part.bad)]) for part in parts]
        assert sum(numbers, []) == list(range(sum(map(len, numbers))))
        for part in parts:
            good += [dict(part.value(index)) for index in range(len(part.rows))]
            bad += part.bad
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "READ_BYTES", read_bytes)
        assert read_all([path], shard_bytes) == (rows, [])


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
    good, bad = read_all([path], 1000, limit=50)
    assert good == [{"a": 1}, {"a": 2}]
    offsets = [sum(len(line) + 1 for line in lines[:row]) for row in range(len(lines))]
    assert [b.location for b in bad] == [f"{path}:byte {offsets[row]}" for row in range(1, 7)]
    reasons = ["empty line", "no JSON", "not UTF-8", "must be a JSON object, got list", "larger"]
    assert all(word in b.reason for word, b in zip(reasons, bad[:5], strict=True))


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_compressed_lines_are_cut_as_they_are_read(tmp_path, codec):
    path = tmp_path / f"x.jsonl.{codec.replace('zip', 'z').replace('std', 'st')}"
    rows = [{"i": i} for i in range(2000)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with pa.CompressedOutputStream(str(path), codec) as stream:
        stream.write(text)
    source = plan([path], 100)
    (shard,) = source.shards
    assert len(list(source.reader.parts(shard))) > 100
    assert read_all([path], 100) == (rows, [])


def test_a_damaged_compressed_file_ends_in_a_bad_row(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    whole = gzip.compress(b'{"a": 1}\n' * 1000)
    path.write_bytes(whole[:-20])
    _, bad = read_all([path])
    assert "nothing behind it" in bad[-1].reason


def test_parts_of_a_long_stream_grow(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    line = json.dumps({"x": "y" * 1000}).encode() + b"\n"
    path.write_bytes(gzip.compress(line * 40_000, 1))
    source = plan([path])
    (shard,) = source.shards
    sizes = [len(part.rows) * len(line) for part in source.reader.parts(shard)]
    assert sizes[0] < 70_000 and sizes[-2] > 2 * sizes[0] and len(sizes) < 600


@pytest.mark.parametrize("group_size", [1, 7, 100])
@pytest.mark.parametrize("shard_bytes", [1, 300, 100_000])
def test_every_row_of_parquet_is_in_one_shard(tmp_path, group_size, shard_bytes):
    path = tmp_path / "x.parquet"
    table = pa.table({"i": list(range(60)), "x": [[i, i + 1] for i in range(60)]})
    parquet.write_table(table, path, row_group_size=group_size)
    assert read_all([path], shard_bytes) == (table.to_pylist(), [])
    source = plan([path], shard_bytes)
    num_parts = sum(len(list(source.reader.parts(shard))) for shard in source.shards)
    assert (num_parts > 1) == (shard_bytes < 100_000)
    assert source.shards.num_bytes <= path.stat().st_size


def test_a_row_group_is_read_in_slices(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"i": list(range(50_000))})
    parquet.write_table(table, path, row_group_size=50_000)
    source = plan([path], 20_000)
    (shard,) = source.shards
    sizes = [len(part.rows) for part in source.reader.parts(shard)]
    assert sum(sizes) == 50_000 and max(sizes) < 8192


def test_damaged_parquet_pages_are_bad_rows(tmp_path):
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"x": ["text" * 10] * 40}), path, compression="none")
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)
    good, bad = read_all([path])
    assert not good and len(bad) == 40 and "cannot be decoded" in bad[0].reason
    path.write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match="is no Parquet file"):
        plan([path])


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "txt", "jsonl.gz"])
def test_small_files_go_together(tmp_path, suffix):
    rows = [{"text": f"row {i}"} for i in range(40)]
    for i, row in enumerate(rows):
        write(tmp_path / f"{i:02}.{suffix}", [row])
    source = plan([tmp_path], 1 << 20)
    assert len(source.shards) == 1
    good, bad = read_all([tmp_path], 1 << 20)
    assert [row["text"] for row in good] == [row["text"] for row in rows] and not bad
    assert len(plan([tmp_path], 1).shards) >= 40


def write(path, rows):
    """Rows in the format that a name promises."""
    name, _, codec = path.name.partition(".")[2].partition(".")
    if name in ("parquet", "arrow", "feather"):
        table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
        if name == "parquet":
            parquet.write_table(table, sink, row_group_size=7)
        else:
            with (pa.ipc.new_stream if name == "arrow" else pa.ipc.new_file)(
                sink, table.schema
            ) as writer:
                writer.write_table(table, max_chunksize=5)
        data = sink.getvalue().to_pybytes()
    elif name in ("csv", "tsv"):
        mark = "," if name == "csv" else "\t"
        lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        quoted = (mark.join('"' + v.replace('"', '""') + '"' for v in line) for line in lines)
        data = "".join(line + "\r\n" for line in quoted).encode()
    elif name == "txt":
        data = rows[0]["text"].encode()
    elif name == "json":
        data = json.dumps(rows, indent=2).encode()
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if codec:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, {"gz": "gzip", "zst": "zstd"}[codec]) as stream:
            stream.write(data)
        data = sink.getvalue().to_pybytes()
    path.write_bytes(data)
    return path


NASTY = ["plain", 'a, "b"', "two\nlines", "ü\t;", ""]


@pytest.mark.parametrize("codec", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["jsonl", "json", "csv", "tsv", "parquet", "arrow", "feather"])
@pytest.mark.parametrize("shard_bytes", [1, 50, None])
def test_every_format_gives_the_same_rows(tmp_path, name, codec, shard_bytes):
    rows = [{"id": str(i), "text": NASTY[i % 5]} for i in range(31)]
    path = write(tmp_path / f"x.{name}{codec}", rows)
    assert read_all([path], shard_bytes) == (rows, [])


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=30)), max_size=8),
    read_bytes=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    is_array=st.booleans(),
    as_text=st.booleans(),
)
@settings(max_examples=80)
def test_json_documents(tmp_path_factory, rows, read_bytes, indent, is_array, as_text):
    path = tmp_path_factory.mktemp("json") / "x.json"
    values = [json.dumps(row, indent=indent, ensure_ascii=as_text) for row in rows]
    path.write_text("[" + ",\n".join(values) + "]" if is_array else "\n".join(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_files, "READ_BYTES", read_bytes)
        if rows or is_array:
            assert read_all([path], 20) == (rows, [])


def test_bad_values_of_a_json_array(tmp_path):
    path = tmp_path / "x.json"
    big = b'{"a": "' + b"x" * 200 + b'"}'
    path.write_bytes(b'[{"a": 1}, 5, {"a": "\xff"}, ' + big + b', {"a": 2}, {"a" 3}, {"a": 4}]')
    good, bad = read_all([path], limit=100)
    assert good == [{"a": 1}, {"a": 2}]
    assert [b.location for b in bad] == [f"{path}:value {i}" for i in (1, 2, 3, 5)]
    for word, b in zip(["got int", "not UTF-8", "larger", "nothing behind"], bad, strict=True):
        assert word in b.reason


def test_bad_rows_of_csv(tmp_path):
    path = tmp_path / "x.csv"
    long = b"y" * 200
    path.write_bytes(
        b'\xef\xbb\xbfid;text\n1;"a;\nb"\n2\n\n3;\xff\n4;' + long + b'\n5;ok\n6;"open\n7;lost\n'
    )
    good, bad = read_all([path], limit=100)
    assert good == [{"id": "1", "text": "a;\nb"}, {"id": "5", "text": "ok"}]
    assert [b.location for b in bad] == [f"{path}:line {line}" for line in (4, 6, 7, 9)]
    for word, b in zip(["2 fields", "not UTF-8", "larger", "no CSV"], bad, strict=True):
        assert word in b.reason


def test_text_files(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "deep" / "b.md").write_text("second\n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    (tmp_path / ".hidden").write_text("no")
    good, bad = read_all([tmp_path], 1)
    assert [row["text"] for row in good] == ["first", "second\n"]
    assert good[1]["path"] == str(tmp_path / "deep" / "b.md")
    assert [b.location for b in bad] == [str(tmp_path / "c.txt")] and "not UTF-8" in bad[0].reason


# Finding


def test_files_beside_the_data_are_skipped(tmp_path):
    write(tmp_path / "x.csv", [{"text": "a"}])
    for name in ("README.md", "_SUCCESS", ".x.csv.crc", "LICENSE", "dataset_info.json", "x.md5"):
        (tmp_path / name).write_text("beside")
    source = plan([tmp_path])
    assert len(source.files) == 1 and "6 files beside the data" in source.notes[0]
    assert find_files([str(tmp_path / "README.md")])[0].kind.format == "text"


def test_first_bytes_tell_where_names_do_not(tmp_path):
    rows = [{"text": "a"}]
    for name in ("jsonl", "json", "parquet", "feather", "jsonl.gz", "jsonl.zst"):
        path = write(tmp_path / f"x.{name}", rows).rename(tmp_path / f"part-{name[:4]}{len(name)}")
        assert read_all([path]) == (rows, [])
    (tmp_path / "notes").write_text("words")
    assert read_all([tmp_path / "notes"], format="text")[0][0]["text"] == "words"


def test_inputs_that_cannot_be(tmp_path):
    (tmp_path / "x.jsonl").write_text("{}")
    (tmp_path / "y.txt").write_text("text")
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (tmp_path / "empty").mkdir()
    for inputs, message in [
        (["nowhere"], "input 'nowhere' does not exist"),
        ([tmp_path / "empty"], "input must have files"),
        (
            [tmp_path / "*.jsonl", tmp_path / "y.txt"],
            "must be all of one format, got JSON",
        ),
        ([tmp_path / "model.safetensors"], "model.safetensors' is no file of rows"),
        (["nosuch://host/x"], "nosuch://host/x: "),
    ]:
        with pytest.raises(ValueError, match=message):
            find_files([str(path) for path in inputs])


def test_patterns(tmp_path):
    for name in (
        "a1.jsonl",
        "a2.jsonl",
        "b1.jsonl",
        "deep/a3.jsonl",
        "deep/er/a4.jsonl",
        "a[x].jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    for pattern, found in {
        "a?.jsonl": "a1 a2",
        "*.jsonl": "a1 a2 a[x] b1",
        "**/*.jsonl": "a1 a2 a[x] b1 deep/a3 deep/er/a4",
        "*/*.jsonl": "deep/a3",
        "[!a]*.jsonl": "b1",
        "a[x].jsonl": "a[x]",
    }.items():
        for scheme in ("", "file://") if "?" not in pattern else ("",):
            files = find_files([f"{scheme}{tmp_path}/{pattern}"])
            names = [f.path.removeprefix(f"{tmp_path}/").removesuffix(".jsonl") for f in files]
            assert names == found.split(), pattern
    twice = find_files([str(tmp_path), f"{tmp_path}/a?.jsonl"])
    assert len(twice) == 6


def test_inputs_by_uri(tmp_path):
    (tmp_path / "a b.txt").write_text("text")
    for uri in (f"file://{tmp_path}/a b.txt", f"file://{tmp_path}/a%20b.txt"):
        assert find_files([uri])[0].name == f"file://{tmp_path}/a b.txt"
        assert read_all([uri])[0][0]["text"] == "text"
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/x.jsonl", b'{"a": 1}\n')
    assert read_all(["memory://bucket"]) == ([{"a": 1}], [])
    assert find_files(["memory://bucket"])[0].name == "memory:///bucket/x.jsonl"


# Columns


def test_folders_are_columns(tmp_path):
    for year, lang in ((2023, "en"), (2024, "__HIVE_DEFAULT_PARTITION__")):
        folder = tmp_path / f"year={year}" / f"lang={lang}"
        folder.mkdir(parents=True)
        for suffix in ("jsonl", "parquet"):
            write(folder / f"x.{suffix}", [{"text": "a"}])
    for suffix in ("jsonl", "parquet"):
        good, _ = read_all([tmp_path / f"**/*.{suffix}"])
        assert good == [
            {"text": "a", "year": 2023, "lang": "en"},
            {"text": "a", "year": 2024, "lang": None},
        ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "arrow", "csv"])
def test_columns_are_picked_and_renamed(tmp_path, suffix):
    rows = [{"id": str(i), "q": "why", "junk": "x"} for i in range(3)]
    path = write(tmp_path / f"x.{suffix}", rows)
    picked, _ = read_all([path], columns=["id", "q"], rename={"q": "prompt"})
    assert picked == [{"id": str(i), "prompt": "why"} for i in range(3)]
    wanted, _ = read_all([path], rename={"q": "prompt"}, wanted=["prompt"])
    assert wanted == [{"prompt": "why"}] * 3


def test_drift_is_unified(tmp_path):
    parquet.write_table(pa.table({"x": pa.array([1], "int32"), "s": ["a"]}), tmp_path / "a.parquet")
    parquet.write_table(
        pa.table({"s": ["b"], "new": [0.5], "x": pa.array([2**40])}), tmp_path / "b.parquet"
    )
    good, bad = read_all([tmp_path])
    assert not bad and good == [
        {"x": 1, "s": "a", "new": None},
        {"x": 2**40, "s": "b", "new": 0.5},
    ]
    (note,) = plan([tmp_path]).notes
    assert "a.parquet: x: int64, here int32, new: double, here missing" in note


def test_a_value_that_does_not_fit_the_unified_type_is_a_bad_row(tmp_path):
    parquet.write_table(pa.table({"x": [1.5]}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"x": [1, 2**53 + 1, 3]}), tmp_path / "b.parquet")
    good, bad = read_all([tmp_path])
    assert [row["x"] for row in good] == [1.5, 1.0, 3.0]
    assert [b.location for b in bad] == [f"{tmp_path}/b.parquet:row 1"]


def test_many_files_take_little_memory(tmp_path, monkeypatch):
    """What is kept of a file is its path, once, and some numbers."""
    import tracemalloc

    from paged_stream.batch import finding

    (tmp_path / "x").mkdir()
    count = 70_000
    names = ((f"{tmp_path}/x/part-{i:07}.jsonl", 1 << 20) for i in range(count))
    monkeypatch.setattr(finding, "_walk", lambda *args, **settings: names)
    tracemalloc.start()
    before_arrow = pa.total_allocated_bytes()
    source = plan([tmp_path / "x"])
    python_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    length = len(f"{tmp_path}/x/part-0000000.jsonl")
    assert len(source.files) == count
    assert python_bytes + pa.total_allocated_bytes() - before_arrow < count * (length + 60) + 5e6


def test_cutting_depends_on_the_files_alone(tmp_path):
    for i in range(1, 5):
        (tmp_path / f"{i}.jsonl").write_bytes(b"{}\n" * 400 * i)
    shards = list(plan([tmp_path], 900).shards)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert sum(shard.num_bytes for shard in shards) == 12_000
    assert list(plan([tmp_path], 900).shards) == shards
    with open(tmp_path / "big.jsonl", "wb") as file:
        file.truncate(10 << 30)
    assert len(plan([tmp_path / "big.jsonl"]).shards) == 1024
