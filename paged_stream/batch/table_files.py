"""Files whose rows are read as Arrow tables, some at a time: Parquet and Arrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from paged_stream.batch.columns import ColumnView
from paged_stream.batch.footers import arrow_reader, open_arrow, unpacked
from paged_stream.batch.inputs import InputFile
from paged_stream.batch.parts import MAX_ROWS
from paged_stream.batch.shards import TO_THE_END, Piece

# Of each column's pages, read at a time.
_BUFFER_BYTES = 1 << 20
# Of the values that are decoded at a time, about.
_BATCH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows that follow each other.

    Args:
        batch: a pyarrow record batch.
        position: of the first of them in its file.
        row_bytes: of each, about.
        share: of the file that has been read with them, from where the piece begins.
    """

    batch: Any
    position: int
    row_bytes: int
    share: float = 0.0

    @property
    def num_rows(self) -> int:
        return self.batch.num_rows


@dataclass(frozen=True, slots=True)
class LostRows:
    """Rows that cannot be decoded, and why; the rest is as in `TableRows`."""

    num_rows: int
    position: int
    row_bytes: int
    reason: str
    share: float = 0.0


def read_tables(piece: Piece, view: ColumnView) -> Iterator[TableRows | LostRows]:
    """The rows of a part of a file.

    Raises:
        OSError: the file cannot be reached.
    """
    if piece.file.kind.format == "arrow":
        return _read_arrow(piece.file, view)
    return _read_parquet(piece, view)


def _read_parquet(piece: Piece, view: ColumnView) -> Iterator[TableRows | LostRows]:
    from pyarrow import parquet

    file = piece.file
    source = file.open() if file.kind.codec is None else unpacked(file)
    # Without these two, pyarrow holds all of a row group.
    settings = {"buffer_size": _BUFFER_BYTES, "pre_buffer": False}
    with source, parquet.ParquetFile(source, **settings) as reader:
        metadata = reader.metadata
        stop = metadata.num_row_groups if piece.stop == TO_THE_END else piece.stop
        groups = [metadata.row_group(i).num_rows for i in range(stop)]
        position = first = sum(groups[: piece.start])
        for group in range(piece.start, stop):
            for found in _read_group(reader, view, group, position):
                position += found.num_rows
                yield replace(found, share=(position - first) / metadata.num_rows)


def _read_group(
    reader: Any, view: ColumnView, group: int, position: int
) -> Iterator[TableRows | LostRows]:
    import pyarrow as pa

    about = reader.metadata.row_group(group)
    row_bytes = max(1, about.total_byte_size // max(1, about.num_rows))
    behind = position + about.num_rows
    batches = reader.iter_batches(
        batch_size=max(1, min(MAX_ROWS, _BATCH_BYTES // row_bytes)),
        row_groups=[group],
        columns=[name for name in reader.schema_arrow.names if view.has(name)],
        use_threads=False,
    )
    try:
        for batch in batches:
            yield TableRows(batch, position, row_bytes)
            position += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file cannot be reached; what cannot be decoded has no number
        yield LostRows(behind - position, position, row_bytes, f"cannot be decoded: {error}")


def _read_arrow(file: InputFile, view: ColumnView) -> Iterator[TableRows | LostRows]:
    import pyarrow as pa

    position, share = 0, 0.0
    with open_arrow(file) as source:
        schema = arrow_reader(source).schema
        fields = [index for index, name in enumerate(schema.names) if view.has(name)]
        source.seek(0)
        try:
            reader = arrow_reader(source, pa.ipc.IpcReadOptions(included_fields=fields))
            for batch, share in _batches(reader, lambda: source.tell() / max(1, source.size())):
                row_bytes = max(1, batch.nbytes // max(1, batch.num_rows))
                yield TableRows(batch, position, row_bytes, share)
                position += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            yield LostRows(1, position, 0, f"nothing behind it: {error}", share)


def _batches(reader: Any, share: Callable[[], float]) -> Iterator[tuple[Any, float]]:
    """Record batches of either kind of Arrow file, and how much has been read with each."""
    count = getattr(reader, "num_record_batches", None)
    if count is None:
        for batch in reader:
            yield batch, share()
    else:
        for index in range(count):
            yield reader.get_batch(index), (index + 1) / count
