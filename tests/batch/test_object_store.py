"""Inputs in an object store: few requests, some at a time, and keys of any kind."""

from __future__ import annotations

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.batch.object_store import ObjectStore, serving
from tests.batch.test_shards import plan, read_all


def table(rows):
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def store():
    objects = {f"many/{i:04}.parquet": table([{"i": i}]) for i in range(1500)}
    objects |= {f"lines/{i:02}.jsonl": b'{"i": %d}\n' % i for i in range(20)}
    objects["odd/a b+c%20.jsonl"] = b'{"i": 1}\n'
    return ObjectStore(objects)


@pytest.fixture(scope="module")
def options(store):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with serving(store) as options:
            yield options


def test_planning_takes_a_request_for_each_file_and_page(store, options):
    store.requests.clear()
    source = plan([f"s3://bucket/many{options}"])
    assert len(source.files) == 1500 and len(source.shards) > 5
    keys = {key: count for key, count in store.requests.items() if key.endswith(".parquet")}
    assert len(keys) == 1500 and set(keys.values()) == {1}
    assert store.requests.total() - sum(keys.values()) <= 4  # two pages, and what the folder is
    assert 2 <= store.most_at_once <= 32


def test_reading_lines_takes_two_requests_for_each_file(store, options):
    store.requests.clear()
    good, bad = read_all([f"s3://bucket/lines{options}"])
    assert [row["i"] for row in good] == list(range(20)) and not bad
    keys = [count for key, count in store.requests.items() if key.endswith(".jsonl")]
    assert max(keys) <= 2


def test_keys_of_any_kind_and_options(options):
    uri = f"s3://bucket/odd/a b+c%2520.jsonl{options}"
    (file,) = plan([uri]).files
    assert file.name == "s3://bucket/odd/a b+c%20.jsonl"
    assert read_all([uri]) == ([{"i": 1}], [])
    assert read_all([f"s3://bucket/odd/*.jsonl{options}"]) == ([{"i": 1}], [])


def test_an_object_that_goes_is_no_bad_row(store, options):
    uri = f"s3://bucket/lines/*.jsonl{options}"
    source = plan([uri])
    content = store.objects.pop("lines/07.jsonl")
    try:
        with pytest.raises(OSError, match="07.jsonl"):
            [list(source.reader.parts(shard)) for shard in source.shards]
    finally:
        store.objects["lines/07.jsonl"] = content


def test_secrets_are_not_shown(options):
    with pytest.raises(ValueError) as caught:
        plan([f"s3://someone:secret@bucket/nothing{options}"])
    assert "secret" not in str(caught.value) and "s3://bucket/nothing" in str(caught.value)
