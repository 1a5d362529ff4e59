"""The list of a run's input files, as its folder keeps it: files keep their places in it, and those
that come later go behind them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from paged_stream.batch.inputs import InputFiles

_AT_A_TIME = 65536


def to_parquet(files: InputFiles) -> bytes:
    """Names and sizes, in order, and with which addition each file came; 0 is the beginning."""
    import pyarrow as pa
    from pyarrow import parquet

    sink = io.BytesIO()
    schema = pa.schema({"path": pa.string(), "size": pa.int64(), "addition": pa.int32()})
    with parquet.ParquetWriter(sink, schema, compression="zstd") as writer:
        for start in range(0, len(files), _AT_A_TIME):
            some = files[start : start + _AT_A_TIME]
            numbers = [files.addition_of(index) for index in range(start, start + len(some))]
            columns = [[file.name for file in some], [file.size for file in some], numbers]
            writer.write_table(pa.table(columns, schema=schema))
    return sink.getvalue()


def in_recorded_order(files: InputFiles, listing: bytes) -> InputFiles:
    """Files in the order that `to_parquet` has noted, and behind them those that are new.

    Raises:
        ValueError: names a file that is not there any more, or has another size.
    """
    if _keep_places(files, listing):
        return files
    places = {file.name: index for index, file in enumerate(files)}
    is_taken = bytearray(len(files))
    ordered = InputFiles()
    ordered.num_skipped = files.num_skipped
    for name, size, addition in _entries(listing):
        index = places.get(name)
        if index is None:
            raise ValueError(f"resume: input lacks {name}, which the run was begun with")
        file = files[index]
        if file.size != size:
            raise ValueError(
                f"resume: {name} has {file.size:,} bytes, but had {size:,} when the run was begun"
            )
        if addition > ordered.last_addition:
            ordered.begin_addition()
        ordered.add(file)
        is_taken[index] = True
    if len(ordered) < len(files):
        ordered.begin_addition()
        for index, file in enumerate(files):
            if not is_taken[index]:
                ordered.add(file)
    return ordered


def _keep_places(files: InputFiles, listing: bytes) -> bool:
    """Whether files are those of a listing, in the same order and from one beginning, as of a
    million of them most are."""
    count = 0
    for (name, size, addition), file in zip(_entries(listing), files, strict=False):
        if addition or (name, size) != (file.name, file.size):
            return False
        count += 1
    return count == len(files)


def _entries(listing: bytes) -> Iterator[tuple[str, int, int]]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(io.BytesIO(listing)).iter_batches(_AT_A_TIME):
        columns: list[list[Any]] = [column.to_pylist() for column in batch.columns]
        yield from zip(*columns, strict=True)
