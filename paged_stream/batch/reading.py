"""Shards read into parts of good and bad rows: a row that cannot be read stops nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from paged_stream.batch.columns import ColumnView
from paged_stream.batch.parts import Part, PartBuilder, PartSize
from paged_stream.batch.row_files import (
    LineReader,
    Row,
    csv_rows,
    json_document,
    json_lines,
    text_row,
    try_row,
)
from paged_stream.batch.shards import TO_THE_END, InputShard, Piece
from paged_stream.batch.table_files import LostRows, TableRows, read_tables

# What positions count in files of a format.
_UNITS = {"jsonl": "byte", "json": "value", "csv": "line", "tsv": "line", "text": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads shards.

    Args:
        max_row_bytes: largest row that is no table's.
        size: of parts.
    """

    max_row_bytes: int
    size: PartSize
    view: ColumnView

    def parts(self, shard: InputShard) -> Iterator[Part]:
        """The parts of a shard, in order, as they are read.

        Raises:
            OSError: a file cannot be reached.
        """
        is_table = self.view.schema is not None
        empty = self.view.schema.empty_table() if is_table else None
        builder = PartBuilder(shard.number, shard.num_bytes, self.size, empty)
        before = 0
        for piece in shard.pieces:
            read = self._read_tables if is_table else self._read_rows
            yield from read(builder, piece, before)
            before += piece.file.size
            builder.end_file(before)
        yield from builder.finish()

    # Rows

    def _read_rows(self, builder: PartBuilder, piece: Piece, before: int) -> Iterator[Part]:
        file, position = piece.file, 0
        partition = self.view.partition_of(file)
        with ExitStack() as stack:
            builder.begin_file(file.name, _UNITS[file.kind.format], lambda: before)
            try:
                for row in self._rows(stack, builder, piece, before):
                    position = row.position
                    yield from _add_row(builder, row, self.view, partition)
            except OSError as error:
                # What cannot be unpacked has no number.
                is_text = file.kind.format == "text" and isinstance(
                    error, FileNotFoundError | PermissionError
                )
                if error.errno is not None and not is_text:
                    raise
                reason = str(error) if is_text else f"nothing behind it: {error}"
                yield from builder.add_bad(position, 0, reason)

    def _rows(
        self, stack: ExitStack, builder: PartBuilder, piece: Piece, before: int
    ) -> Iterator[Row]:
        file, limit = piece.file, self.max_row_bytes
        if piece.stop != TO_THE_END or piece.start > 0:
            lines = LineReader(stack.enter_context(file.open()), limit)
            builder.begin_file(file.name, "byte", lambda: lines.offset - piece.start)
            yield from _lines_from(lines, piece)
            return
        stream, tell = file.open_stream()
        stack.enter_context(stream)
        builder.begin_file(file.name, _UNITS[file.kind.format], lambda: before + tell())
        if file.kind.format == "text":
            yield text_row(stream, file.name, limit)
        elif file.kind.format in ("csv", "tsv"):
            yield from csv_rows(stream, limit, "\t" if file.kind.format == "tsv" else None)
        elif file.kind.format == "json":
            yield from json_document(stream, limit)
        else:
            yield from json_lines(LineReader(stream, limit), None)

    # Tables

    def _read_tables(self, builder: PartBuilder, piece: Piece, before: int) -> Iterator[Part]:
        file = piece.file
        partition, share = self.view.partition_of(file), 0.0
        builder.begin_file(file.name, "row", lambda: before + int(file.size * share))
        for found in read_tables(piece, self.view):
            share = found.share
            if isinstance(found, LostRows):
                for position in range(found.position, found.position + found.num_rows):
                    yield from builder.add_bad(position, found.row_bytes, found.reason)
            else:
                yield from _add_table(builder, found, self.view, partition)


def _add_row(
    builder: PartBuilder, row: Row, view: ColumnView, partition: dict[str, Any]
) -> Iterator[Part]:
    if row.values is not None and view.changes_rows:
        values = row.values
        row = try_row(row.position, row.num_bytes, partial(_changed, view, values, partition))
    if row.text is None:
        yield from builder.add_bad(row.position, row.num_bytes, row.reason)
    else:
        yield from builder.add_line(row.position, row.num_bytes, row.text)


def _changed(
    view: ColumnView, values: dict[str, Any], partition: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    changed = view.row(values, partition)
    return changed, json.dumps(changed)


def _add_table(
    builder: PartBuilder, found: TableRows, view: ColumnView, partition: dict[str, Any]
) -> Iterator[Part]:
    import pyarrow as pa

    try:
        table = view.table(found.batch, partition)
    except pa.ArrowException as error:
        if found.batch.num_rows == 1:
            yield from builder.add_bad(found.position, found.row_bytes, f"cannot be cast: {error}")
            return
    else:
        yield from builder.add_table(found.position, found.row_bytes, table)
        return
    for index in range(found.batch.num_rows):  # one of them, or more
        row = replace(found, batch=found.batch.slice(index, 1), position=found.position + index)
        yield from _add_table(builder, row, view, partition)


def _lines_from(lines: LineReader, piece: Piece) -> Iterator[Row]:
    """Rows for the lines that begin in a part of a file."""
    if piece.start > 0:
        # The line that the byte before belongs to is another shard's.
        lines.seek(piece.start - 1)
        lines.next()
    return json_lines(lines, piece.stop)
