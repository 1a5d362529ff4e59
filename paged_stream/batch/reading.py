"""Shards read into rows, good ones and bad ones: a row that cannot be read stops nobody."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from paged_stream.batch.files import open_file, open_stream
from paged_stream.batch.shards import JSONL, TEXT, InputShard, parquet_metadata

_READ_BYTES = 1 << 20
LINE = "line"  # the column of JSON lines


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that has no output, and why."""

    row: int
    location: str
    reason: str


@dataclass(slots=True)
class ShardRows:
    """A shard's content.

    Args:
        table: pyarrow table of its good rows. Lines are in one column, `LINE`.
        rows: their numbers in the shard.
        positions: where they are, for `InputShard.locate`.
        bad: the others.
    """

    table: Any
    rows: list[int]
    positions: list[int]
    bad: list[BadRow]

    def to_bytes(self) -> bytes:
        import pyarrow as pa

        about = {
            "rows": self.rows,
            "positions": self.positions,
            "bad": [(b.row, b.location, b.reason) for b in self.bad],
        }
        sink = io.BytesIO()
        table = self.table.replace_schema_metadata({"shard": json.dumps(about)})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> ShardRows:
        import pyarrow as pa

        table = pa.ipc.open_stream(data).read_all()
        about = json.loads(table.schema.metadata[b"shard"])
        bad = [BadRow(*fields) for fields in about["bad"]]
        return ShardRows(
            table.replace_schema_metadata(None), about["rows"], about["positions"], bad
        )

    def values(self, format: str) -> list[dict[str, Any]]:
        """The good rows of a shard of this format as dicts."""
        if format == JSONL:
            return [json.loads(line) for line in self.table[LINE].to_pylist()]
        rows: list[dict[str, Any]] = self.table.to_pylist()
        return rows


def read_shard(shard: InputShard, max_row_bytes: int, *, most: int | None = None) -> ShardRows:
    """Read a shard; rows that cannot be read, or are larger than ``max_row_bytes``, are bad.

    Args:
        most: lines to read; ``None`` is all.

    Raises:
        OSError: the file cannot be reached.
    """
    if shard.format == JSONL:
        return _read_lines(shard, max_row_bytes, most)
    if shard.format == TEXT:
        return _read_texts(shard, max_row_bytes)
    return _read_parquet(shard)


def _read_lines(shard: InputShard, limit: int, most: int | None) -> ShardRows:
    import pyarrow as pa

    lines: list[str] = []
    result = ShardRows(None, [], [], [])
    row = position = 0
    try:
        for position, raw in itertools.islice(_lines(shard, limit), most):
            line = _try(result, shard, row, position, partial(_decode_line, raw, position, limit))
            row += 1
            if line is not None:
                lines.append(line)
    except OSError as error:
        if error.errno is not None:
            raise  # the file cannot be reached; what cannot be decompressed has no number
        result.bad.append(BadRow(row, shard.locate(position), f"nothing behind it: {error}"))
    result.table = pa.table({LINE: pa.array(lines, pa.large_string())})
    return result


def _read_texts(shard: InputShard, limit: int) -> ShardRows:
    import pyarrow as pa

    texts: list[str] = []
    result = ShardRows(None, [], [], [])
    for row, path in enumerate(shard.paths):
        text = _try(result, shard, row, row, partial(_read_text, path, limit))
        if text is not None:
            texts.append(text)
    paths = [shard.paths[row] for row in result.rows]
    result.table = pa.table({"path": paths, "text": pa.array(texts, pa.large_string())})
    return result


def _try(
    result: ShardRows, shard: InputShard, row: int, position: int, read: Callable[[], str]
) -> str | None:
    """Read one row into the good ones, or enter it among the bad ones."""
    try:
        text = read()
    except (ValueError, RecursionError, FileNotFoundError, PermissionError) as error:
        result.bad.append(BadRow(row, shard.locate(position), _reason(error)))
        return None
    result.rows.append(row)
    result.positions.append(position)
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON: {error}"
    return str(error)


def _decode_line(raw: bytes | None, position: int, limit: int) -> str:
    if raw is None:
        raise ValueError(f"larger than max_row_bytes={limit}")
    line = raw.decode("utf-8" if position else "utf-8-sig").strip()
    if not line:
        raise ValueError("empty line")
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"must be a JSON object, got {type(values).__name__}")
    return line


def _read_text(path: str, limit: int) -> str:
    with open_stream(path) as file:
        data: bytes = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"larger than max_row_bytes={limit}")
    return data.decode("utf-8-sig")


def _read_parquet(shard: InputShard) -> ShardRows:
    import pyarrow as pa
    from pyarrow import parquet

    path = shard.paths[0]
    num_rows = shard.stop - shard.start
    groups: list[int] = []
    first = begin = 0
    metadata = parquet_metadata(path)
    for group in range(metadata.num_row_groups):
        end = begin + metadata.row_group(group).num_rows
        if begin < shard.stop and end > shard.start:
            if not groups:
                first = begin
            groups.append(group)
        begin = end
    positions = list(range(shard.start, shard.stop))
    try:
        with open_file(path) as file:
            table = parquet.ParquetFile(file).read_row_groups(groups)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file cannot be reached; what cannot be decoded has no number
        reason = f"cannot be decoded: {error}"
        bad = [BadRow(row, shard.locate(p), reason) for row, p in enumerate(positions)]
        return ShardRows(parquet_schema(path).empty_table(), [], [], bad)
    table = table.slice(shard.start - first, num_rows)
    return ShardRows(table, list(range(num_rows)), positions, [])


def parquet_schema(path: str) -> Any:
    """Names and types of a Parquet file's columns."""
    schema = parquet_metadata(path).schema.to_arrow_schema()
    return schema.remove_metadata()


def _lines(shard: InputShard, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Offset and bytes of the lines that begin in the shard; ``None`` for one that is too long."""
    path, is_whole = shard.paths[0], shard.stop < 0
    with open_stream(path) if is_whole else open_file(path) as file:
        reader = _LineReader(file, limit)
        if shard.start > 0:
            # The line that the byte before belongs to is another shard's.
            file.seek(shard.start - 1)
            reader.offset = shard.start - 1
            reader.next()
        while is_whole or reader.offset < shard.stop:
            if (line := reader.next()) is None:
                return
            yield line


class _LineReader:
    """Lines of a binary file from where it stands; ``offset`` is where the next one begins."""

    def __init__(self, file: Any, limit: int) -> None:
        self.offset = 0
        self._file = file
        self._limit = limit
        self._buffer = b""
        self._begin = 0

    def next(self) -> tuple[int, bytes | None] | None:
        start, size = self.offset, 0
        pieces = []
        while True:
            newline = self._buffer.find(b"\n", self._begin)
            end = len(self._buffer) if newline < 0 else newline
            size += end - self._begin
            if size <= self._limit:
                pieces.append(self._buffer[self._begin : end])
            self._begin = end + 1
            if newline >= 0:
                break
            self._buffer, self._begin = self._file.read(_READ_BYTES), 0
            if not self._buffer:
                if size == 0:
                    return None
                break
        self.offset = start + size + (newline >= 0)
        return start, b"".join(pieces) if size <= self._limit else None
