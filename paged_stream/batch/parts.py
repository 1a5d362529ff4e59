"""Parts of a shard: the rows that are read, computed and committed together.

Where a part ends follows from the rows alone, so a shard is cut at the same places whenever it is
read.
"""

from __future__ import annotations

import io
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from paged_stream.batch.json_text import to_json

LINE = "line"  # the column of rows that are JSON
MAX_ROWS = 8192
# A part is at most this share of what was read before it, so that the first are there soon.
_GROWTH, _MAX_BYTES = 256, 16 << 20


@dataclass(frozen=True, slots=True)
class RowFailure:
    """Why a row has no output.

    Args:
        columns: what else is told of it.
    """

    reason: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that has no output, and why."""

    row: int
    location: str
    reason: str
    columns: Mapping[str, Any] = field(default_factory=dict)

    def line(self, shard: int) -> str:
        """The row as JSON, in a line."""
        where = {"shard": shard, "row": self.row, "location": self.location}
        return to_json({**self.columns, **where, "reason": self.reason}) + "\n"


class TableRow(Mapping[str, Any]):
    """A row of a table. Only the values that somebody asks for become Python's."""

    def __init__(self, table: Any, index: int) -> None:
        self._table = table
        self._index = index

    def __getitem__(self, name: str) -> Any:
        if name not in self._table.column_names:
            raise KeyError(name)
        return self._table[name][self._index].as_py()

    def __contains__(self, name: object) -> bool:
        return name in self._table.column_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return self._table.num_columns


@dataclass(slots=True, kw_only=True)
class Part:
    """Some rows of a shard that follow each other.

    Args:
        number: of the part in the shard.
        is_last: whether the shard ends here.
        is_json: whether rows are JSON, in the one column `LINE`.
        rows: numbers of the good rows in the shard.
        positions: where they are in their files.
        places: first row, file and unit of positions, of each file that rows are from.
        bad: the other rows.
        num_bytes: of the files, for progress.
    """

    shard: int
    number: int
    is_last: bool = False
    is_json: bool
    table: Any = None
    rows: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    places: list[tuple[int, str, str]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    num_bytes: int = 0

    def locate(self, row: int, position: int) -> str:
        """Where in the input a row is, for people."""
        index = bisect_right(self.places, row, key=lambda place: place[0]) - 1
        _, name, unit = self.places[index]
        return f"{name}:{unit} {position}" if unit else name

    def value(self, index: int) -> Mapping[str, Any]:
        """A good row, by its place among these."""
        if not self.is_json:
            return TableRow(self.table, index)
        values: dict[str, Any] = json.loads(self.table[LINE][index].as_py())
        return values

    def to_bytes(self) -> bytes:
        import pyarrow as pa

        about = {name: getattr(self, name) for name in self.__slots__ if name != "table"}
        about["bad"] = [(b.row, b.location, b.reason) for b in self.bad]
        sink = io.BytesIO()
        table = self.table.replace_schema_metadata({"part": json.dumps(about)})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue()

    @staticmethod
    def from_bytes(data: Any) -> Part:
        import pyarrow as pa

        table = pa.ipc.open_stream(data).read_all()
        about = json.loads(table.schema.metadata[b"part"])
        about["bad"] = [BadRow(*fields) for fields in about["bad"]]
        # One chunk each, so that a row is found at once.
        return Part(**about, table=table.replace_schema_metadata(None).combine_chunks())


@dataclass(frozen=True, slots=True)
class PartSize:
    """How much is committed at a time.

    Args:
        num_bytes: of rows, as they are unpacked.
        grows: whether later parts of a large shard may be larger.
        max_rows: of a part, however small they are.
    """

    num_bytes: int
    grows: bool
    max_rows: int = MAX_ROWS

    def after(self, num_bytes: int) -> int:
        """Bytes of the part that begins behind so many of its shard."""
        grown = min(_MAX_BYTES, num_bytes // _GROWTH) if self.grows else 0
        return max(self.num_bytes, grown)


class PartBuilder:
    """Puts the rows of a shard, in order, into parts.

    Args:
        num_bytes: of the shard, in its files.
        empty: a pyarrow table without rows, with the columns of tables; ``None`` if rows are JSON.
    """

    def __init__(self, shard: int, num_bytes: int, size: PartSize, empty: Any = None) -> None:
        self._shard = shard
        self._num_bytes = num_bytes
        self._size = size
        self._empty = empty
        self._tell: Callable[[], int] = lambda: 0
        self._told = 0
        self._number = self._row = self._weight = self._weight_before = 0
        self._place: tuple[str, str] | None = None
        self._complete: Part | None = None  # not given out before it is known whether it is last
        self._start()

    def _start(self) -> None:
        self._part = Part(shard=self._shard, number=self._number, is_json=self._empty is None)
        self._lines: list[str] = []
        self._tables: list[Any] = []
        self._limit = self._size.after(self._weight_before)
        if self._place is not None:
            self._part.places.append((self._row, *self._place))

    def begin_file(self, name: str, unit: str, tell: Callable[[], int]) -> None:
        """Say where the next rows are from.

        Args:
            unit: what positions count; nothing for a file that is one row.
            tell: says how many bytes of the shard's files have been read.
        """
        self._place = name, unit
        self._tell = tell
        places = self._part.places
        if places and places[-1][0] == self._row:
            places.pop()
        places.append((self._row, *self._place))

    def end_file(self, num_bytes: int) -> None:
        """Say that so many bytes of the shard's files have been read, and the file is closed."""
        self._tell = lambda: num_bytes

    def add_line(self, position: int, weight: int, line: str) -> Iterator[Part]:
        """A good row that is JSON."""
        yield from self._make_room()
        self._lines.append(line)
        self._part.rows.append(self._row)
        self._part.positions.append(position)
        self._count(1, weight)

    def add_bad(self, position: int, weight: int, reason: str) -> Iterator[Part]:
        yield from self._make_room()
        location = self._part.locate(self._row, position)
        self._part.bad.append(BadRow(self._row, location, reason))
        self._count(1, weight)

    def add_table(self, position: int, row_weight: int, table: Any) -> Iterator[Part]:
        """Good rows of a table, the first of them at this position."""
        start = 0
        while start < table.num_rows:
            yield from self._make_room()
            by_weight = -(-(self._limit - self._weight) // max(1, row_weight))
            most = min(self._size.max_rows - self._num_rows, by_weight, table.num_rows - start)
            self._tables.append(table.slice(start, most))
            self._part.rows.extend(range(self._row, self._row + most))
            self._part.positions.extend(range(position + start, position + start + most))
            self._count(most, most * row_weight)
            start += most

    def finish(self) -> Iterator[Part]:
        """The last part. A shard without rows is a part without rows."""
        yield from self._close()
        assert self._complete is not None
        self._complete.is_last = True
        self._complete.num_bytes += self._num_bytes - self._told
        yield self._complete

    @property
    def _num_rows(self) -> int:
        return len(self._part.rows) + len(self._part.bad)

    def _count(self, num_rows: int, weight: int) -> None:
        self._row += num_rows
        self._weight += weight

    def _make_room(self) -> Iterator[Part]:
        is_full = self._num_rows >= self._size.max_rows or self._weight >= self._limit
        if self._num_rows and is_full:
            yield from self._close()
            self._number += 1
            self._weight_before += self._weight
            self._weight = 0
            self._start()

    def _close(self) -> Iterator[Part]:
        """Complete the part. The one before is not the last, so it can go."""
        import pyarrow as pa

        if self._complete is not None:
            yield self._complete
        part = self._part
        if part.is_json:
            part.table = pa.table({LINE: pa.array(self._lines, pa.large_string())})
        else:
            part.table = pa.concat_tables([self._empty, *self._tables])
        told = min(self._num_bytes, max(self._told, self._tell()))
        part.num_bytes, self._told = told - self._told, told
        self._complete = part
