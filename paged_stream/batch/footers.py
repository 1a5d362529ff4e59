"""What the ends of Parquet files, and the beginnings of Arrow files, say: columns, and where a file
may be cut. Each is read once, some at a time, and next to nothing of it is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from paged_stream.batch.inputs import InputFile

_THREADS, _AT_A_TIME = 32, 1024
_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a file is cut.

    Args:
        num_rows: its rows; ``None`` if that is not known before they are read.
        shards: first row group, one behind the last, and bytes of each; only of larger files.
    """

    num_rows: int | None
    shards: Sequence[tuple[int, int, int]] = ()


class Footers:
    """Reads the footers of files.

    Args:
        num_bytes: largest shard, but for a row group that is larger.
    """

    def __init__(self, files: Sequence[InputFile], num_bytes: int) -> None:
        self._files = files
        self._num_bytes = num_bytes
        self._schemas: dict[bytes, tuple[Any, str]] = {}

    def __iter__(self) -> Iterator[Cut]:
        """A cut for each file, in their order.

        Raises:
            ValueError: names a file that is no Parquet or Arrow file.
        """
        with ThreadPoolExecutor(_THREADS, "footers") as pool:
            for start in range(0, len(self._files), _AT_A_TIME):
                files = self._files[start : start + _AT_A_TIME]
                for file, (schema, cut) in zip(files, pool.map(self._read, files), strict=True):
                    self._schemas.setdefault(schema.serialize().to_pybytes(), (schema, file.name))
                    yield cut

    @property
    def schemas(self) -> list[tuple[Any, str]]:
        """The different schemas of the files so far, and the first file of each."""
        return list(self._schemas.values())

    def _read(self, file: InputFile) -> tuple[Any, Cut]:
        import pyarrow as pa

        try:
            if file.kind.format == "arrow":
                return arrow_schema(file).remove_metadata(), Cut(None)
            metadata, schema = _metadata(file)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            name = "Parquet" if file.kind.format == "parquet" else "Arrow"
            raise ValueError(f"{file.name} is no {name} file: {error}") from None
        is_cut = file.size > self._num_bytes and file.kind.can_be_cut
        shards = tuple(_cut_groups(file.size, metadata, self._num_bytes)) if is_cut else ()
        return schema.remove_metadata(), Cut(metadata.num_rows, shards)


def _metadata(file: InputFile) -> tuple[Any, Any]:
    """Metadata and schema of a Parquet file, in one request if the footer is small."""
    from pyarrow import dataset, parquet

    if file.kind.codec is not None:
        with unpacked(file) as plain, parquet.ParquetFile(plain) as reader:
            return reader.metadata, reader.schema_arrow
    filesystem = file.place.filesystem
    # Whoever knows the size need not ask for it.
    fragment = dataset.ParquetFileFormat().make_fragment(file.path, filesystem, file_size=file.size)
    return fragment.metadata, fragment.physical_schema


def _cut_groups(size: int, metadata: Any, num_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Row groups that follow each other, together about ``num_bytes`` of the file."""
    groups = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    share = size / max(1, sum(groups))
    start, weight = 0, 0.0
    for index, group in enumerate(groups):
        if start < index and weight + group * share > num_bytes:
            yield start, index, int(weight)
            start, weight = index, 0.0
        weight += group * share
    yield start, len(groups), int(weight)


def unpacked(file: InputFile) -> Any:
    """A compressed file for reading at any place. It lies on disk as long as it is open."""
    import pyarrow as pa

    stream, _ = file.open_stream()
    copy = tempfile.TemporaryFile()
    with stream:
        while data := stream.read(_COPY_BYTES):
            copy.write(data)
    copy.seek(0)
    return pa.PythonFile(copy, "r")


def arrow_schema(file: InputFile) -> Any:
    """Names and types of the columns of an Arrow file of either kind."""
    with open_arrow(file) as source:
        return arrow_reader(source).schema


def open_arrow(file: InputFile) -> Any:
    """An Arrow file for reading at any place, unpacked."""
    return file.open() if file.kind.codec is None else unpacked(file)


def arrow_reader(source: Any, options: Any = None) -> Any:
    """Reads record batches of a file, or of a stream that was written as a file."""
    import pyarrow as pa

    magic = source.read(6)
    source.seek(0)
    is_file = magic == b"ARROW1"
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source, options=options)
