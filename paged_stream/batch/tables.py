"""Output rows as pyarrow tables: the input's columns, what the task adds, and the order key.

JSON lines have no types, so those of their columns are fixed for a run by its first rows. What does
not fit its column later, or has none, is kept as JSON in the column ``_extra``.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from paged_stream.batch.reading import ShardRows
from paged_stream.batch.shards import JSONL, InputShard

EXTRA = "_extra"
KEY = {"shard": "int64", "row": "int64"}
FORMATS = ("parquet", "jsonl")
_JSON = "json"
_TYPES = {bool: "bool", int: "int64", float: "double", str: "string"}
_INT64 = 2**63
_EXACT = 2**53  # integers up to here are floats too


def column_types(rows: Sequence[Mapping[str, Any]], reserved: Sequence[str]) -> dict[str, str]:
    """Types for the columns of JSON rows: what most of their values are, of bool, int64, double,
    string, and JSON as text."""
    kinds: dict[str, Counter[str]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in reserved and name != EXTRA:
                counts = kinds.setdefault(name, Counter())
                counts[_TYPES.get(type(value), _JSON)] += value is not None
    types = {}
    for name, counts in kinds.items():
        if counts["double"]:  # which holds integers too
            counts["double"] += counts.pop("int64", 0)
        (kind, count), *_ = counts.most_common(1)
        types[name] = kind if count else _JSON
    return types


def check_columns(names: Sequence[str], added: Sequence[str]) -> None:
    """Refuse input columns that the output needs for itself.

    Raises:
        ValueError: names them.
    """
    if taken := [name for name in names if name in added]:
        raise ValueError(f"input must not have a column {taken[0]!r}: the output adds one")


class TableWriter:
    """Turns results into bytes of a Parquet or JSON lines file.

    Args:
        format: one of `FORMATS`.
        types: of the input's columns, for JSON lines written as Parquet.
        added: names and types of the task's columns.
    """

    def __init__(self, format: str, types: Mapping[str, str], added: Mapping[str, str]) -> None:
        self._format = format
        self._types = types
        self._added = {**added, **KEY}

    @property
    def suffix(self) -> str:
        return self._format

    def to_bytes(
        self, shard: InputShard, source: ShardRows, results: Mapping[int, Mapping[str, Any]]
    ) -> bytes:
        """Write the rows that have results.

        Args:
            results: the task's columns, by index among the source's good rows.
        """
        import pyarrow as pa

        indices = sorted(results)
        keys = [{"shard": shard.number, "row": source.rows[index]} for index in indices]
        added = [{**results[index], **key} for index, key in zip(indices, keys, strict=True)]
        chosen = ShardRows(source.table.take(pa.array(indices, "int64")), [], [], [])
        if self._format == "jsonl":
            values = chosen.values(shard.format)
            rows = map(self._merge, values, added)
            return "".join(json.dumps(row, default=str) + "\n" for row in rows).encode()
        return self._to_parquet(shard, chosen, added)

    def _merge(self, values: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
        hidden = {name: values.pop(name) for name in [*added, EXTRA] if name in values}
        return values | ({EXTRA: hidden} if hidden else {}) | added

    def _to_parquet(
        self, shard: InputShard, chosen: ShardRows, added: list[dict[str, Any]]
    ) -> bytes:
        import pyarrow as pa
        from pyarrow import parquet

        table = chosen.table
        if shard.format == JSONL:
            table = self._type(chosen.values(shard.format))
        for name, kind in self._added.items():
            column = pa.array([row[name] for row in added], kind)
            table = table.append_column(name, column)
        sink = io.BytesIO()
        parquet.write_table(table, sink, compression="zstd")
        return sink.getvalue()

    def _type(self, rows: list[dict[str, Any]]) -> Any:
        import pyarrow as pa

        columns: dict[str, list[Any]] = {name: [] for name in (*self._types, EXTRA)}
        for row in rows:
            extra = {name: value for name, value in row.items() if name not in self._types}
            for name, kind in self._types.items():
                value = row.get(name)
                if value is not None and kind == _JSON:
                    value = json.dumps(value)
                elif value is not None and not _fits(value, kind):
                    extra[name], value = value, None
                columns[name].append(value)
            columns[EXTRA].append(json.dumps(extra) if extra else None)
        arrow = {n: "string" if kind == _JSON else kind for n, kind in self._types.items()}
        arrow[EXTRA] = "string"
        arrays = {name: pa.array(values, arrow[name]) for name, values in columns.items()}
        return pa.table(arrays)


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
