"""Output rows as files: the input's columns, what the task adds, and the order key.

JSON lines have no types, so those of their columns are fixed for a run by its first rows. What does
not fit its column later, or has none, is kept as JSON in the column ``_extra``.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from paged_stream.batch.json_text import to_json
from paged_stream.batch.parts import LINE, Part
from paged_stream.batch.row_task import FLOATS

EXTRA = "_extra"
KEY = {"shard": "int64", "row": "int64"}
FORMATS = ("parquet", "jsonl")
_JSON = "json"
_TYPES = {bool: "bool", int: "int64", float: "double", str: "string"}
_INT64 = 2**63
_EXACT = 2**53  # integers up to here are floats too


def column_types(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Types for the columns of JSON rows: what most of their values are, of bool, int64, double,
    string, and JSON as text."""
    kinds: dict[str, Counter[str]] = {}
    for row in rows:
        for name, value in row.items():
            counts = kinds.setdefault(name, Counter())
            counts[_TYPES.get(type(value), _JSON)] += value is not None
    types = {}
    for name, counts in kinds.items():
        if counts["double"]:  # which holds integers too
            counts["double"] += counts.pop("int64", 0)
        (kind, count), *_ = counts.most_common(1)
        types[name] = kind if count else _JSON
    return types


def free_names(names: Sequence[str], added: Collection[str]) -> dict[str, str]:
    """Names of input columns in the output, which adds others: ``row`` becomes ``input_row``."""
    new: dict[str, str] = {}
    for name in names:
        free = name
        while free in added or free in new.values() or (free != name and free in names):
            free = f"input_{free}"
        new[name] = free
    return new


class TableWriter:
    """Turns results into bytes of a Parquet or JSON lines file.

    Args:
        format: one of `FORMATS`.
        columns: names and types of the input's columns that the output has. Types are those of
            JSON rows; ``None`` for tables, which have their own.
        added: names and types of the task's columns, as `RowTask.columns`.
        has_extra: whether what fits no column is kept as JSON.
        keep: columns that JSON rows keep; ``None`` is all.
    """

    def __init__(
        self,
        format: str,
        columns: Mapping[str, str | None],
        added: Mapping[str, str],
        *,
        has_extra: bool,
        keep: Collection[str] | None = None,
    ) -> None:
        self._format = format
        self._columns = columns
        self._added = {**added, **KEY}
        self._has_extra = has_extra
        self._keep = keep
        reserved = [*self._added, EXTRA] if has_extra else [*self._added]
        self.names = free_names(list(columns), reserved)

    @property
    def suffix(self) -> str:
        return self._format

    def to_bytes(self, part: Part, results: Mapping[int, Mapping[str, Any]]) -> bytes:
        """Write the rows that have results.

        Args:
            results: the task's columns, by index among the part's good rows.
        """
        import pyarrow as pa

        indices = sorted(results)
        keys = [{"shard": part.shard, "row": part.rows[index]} for index in indices]
        added = [
            self._of_task(results[index]) | key for index, key in zip(indices, keys, strict=True)
        ]
        chosen = part.table.take(pa.array(indices, "int64"))
        if self._format == "jsonl":
            rows = self._rows(part, chosen)
            merged = (row | new for row, new in zip(rows, added, strict=True))
            return "".join(to_json(row) + "\n" for row in merged).encode()
        return self._to_parquet(part, chosen, added)

    def read(self, part: Part, content: bytes) -> dict[int, dict[str, Any]]:
        """The results that `to_bytes` has written for some rows of a part."""
        from pyarrow import parquet

        if self._format == "jsonl":
            rows = [json.loads(line) for line in content.splitlines()]
        else:
            table = parquet.read_table(io.BytesIO(content), columns=[*self._added])
            rows = table.to_pylist()
            for name in (name for name, kind in self._added.items() if kind == _JSON):
                for row in rows:
                    row[name] = None if row[name] is None else json.loads(row[name])
        indices = {row: index for index, row in enumerate(part.rows)}
        return {indices[row["row"]]: self._of_task(row) for row in rows}

    def _of_task(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: row[name] for name in self._added if name not in KEY}

    def _rows(self, part: Part, chosen: Any) -> Iterator[dict[str, Any]]:
        """The input's columns for JSON lines, under their names in the output."""
        if not part.is_json:
            columns = {self.names[name]: _to_python(chosen[name]) for name in self._columns}
            for index in range(chosen.num_rows):
                yield {name: column[index] for name, column in columns.items()}
            return
        for line in chosen[LINE].to_pylist():
            values = {n: v for n, v in json.loads(line).items() if self._is_kept(n)}
            # A later row may have columns that nobody has seen before.
            new = [name for name in values if name not in self.names]
            names = self.names | free_names(new, [*self._added, *self.names.values()])
            yield {names[name]: value for name, value in values.items()}

    def _is_kept(self, name: str) -> bool:
        return self._keep is None or name in self._keep

    def _to_parquet(self, part: Part, chosen: Any, added: list[dict[str, Any]]) -> bytes:
        import pyarrow as pa
        from pyarrow import parquet

        if part.is_json:
            arrays = self._type([json.loads(line) for line in chosen[LINE].to_pylist()])
        else:
            arrays = {self.names[name]: chosen[name] for name in self._columns}
        for name, kind in self._added.items():
            arrays[name] = added_array([row[name] for row in added], kind)
        sink = io.BytesIO()
        parquet.write_table(pa.table(arrays), sink, compression="zstd")
        return sink.getvalue()

    def _type(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """JSON rows as arrays of the columns' types."""
        import pyarrow as pa

        columns: dict[str, list[Any]] = {name: [] for name in self._columns}
        extras: list[str | None] = []
        for row in rows:
            extra = {n: v for n, v in row.items() if n not in self._columns and self._is_kept(n)}
            for name, kind in self._columns.items():
                value = row.get(name)
                if value is not None and kind == _JSON:
                    value = to_json(value)
                elif value is not None and not _fits(value, str(kind)):
                    extra[name], value = value, None
                columns[name].append(value)
            extras.append(to_json(extra) if extra else None)
        kinds = {n: "string" if kind == _JSON else kind for n, kind in self._columns.items()}
        arrays = {self.names[n]: pa.array(v, kinds[n]) for n, v in columns.items()}
        return arrays | ({EXTRA: pa.array(extras, "string")} if self._has_extra else {})


def added_array(values: Sequence[Any], kind: str) -> Any:
    """Values of a task's column as a pyarrow array. JSON becomes text."""
    import pyarrow as pa

    if kind == FLOATS:
        return pa.array(values, pa.list_(pa.float32()))
    if kind != _JSON:
        return pa.array(values, kind)
    return pa.array([None if v is None else to_json(v) for v in values], "string")


def _to_python(column: Any) -> list[Any]:
    """A column's values. Those of a type that has values Python has not are text."""
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return column.cast("string").to_pylist()


def _fits(value: Any, kind: str) -> bool:
    """Whether a column of this type holds the value exactly."""
    if kind == "double" and type(value) is int:
        return abs(value) <= _EXACT
    if _TYPES.get(type(value)) != kind:
        return False
    if kind == "int64":
        return -_INT64 <= value < _INT64
    if kind == "string":
        return not any("\ud800" <= char <= "\udfff" for char in value)
    return True
