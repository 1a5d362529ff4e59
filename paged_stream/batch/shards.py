"""Input files cut into shards, which depends on the files alone.

A shard is a run of lines, of rows of a Parquet file, or of whole text files. Its rows are counted
from 0, bad ones too, so shard and row name an input for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paged_stream.batch.files import list_files, open_file

JSONL, PARQUET, TEXT = "jsonl", "parquet", "text"
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
_SUFFIXES = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": JSONL,
    ".parquet": PARQUET,
    ".pq": PARQUET,
    ".txt": TEXT,
    ".md": TEXT,
}
_MIN_BYTES, _MAX_BYTES, _WANTED_SHARDS = 64 << 10, 16 << 20, 1024
# A slice of a row group takes reading all of it.
_MAX_SLICES = 16
# Paths, start, stop, bytes.
Piece = tuple[tuple[str, ...], int, int, int]


@dataclass(frozen=True, slots=True)
class InputFile:
    path: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputShard:
    """A part of the input.

    Args:
        paths: of its one file, or of its text files.
        start: first byte, row or text file; ``stop`` is one behind the last. A compressed file is
            one shard, with ``stop`` -1.
        num_bytes: its size in the files, for progress.
    """

    number: int
    format: str
    paths: tuple[str, ...]
    start: int
    stop: int
    num_bytes: int

    def locate(self, position: int) -> str:
        """Where in the input a position is, for people."""
        if self.format == TEXT:
            return self.paths[position]
        return f"{self.paths[0]}:{'byte' if self.format == JSONL else 'row'} {position}"


# Finding


def find_files(inputs: Sequence[str]) -> tuple[str, list[InputFile]]:
    """The format of the inputs, and their files in order.

    Raises:
        ValueError: names an input that is missing, empty of files, or of another format.
    """
    files = {path: size for uri in inputs for path, size in list_files(uri)}
    if not files:
        raise ValueError(f"input must have files, {', '.join(inputs)} has none")
    formats = {path: _format_of(path) for path in files}
    if not set(formats.values()) & {JSONL, PARQUET}:
        # Every file of a text folder is a document; a single file must look like one.
        unknown = [uri for uri in inputs if formats.get(uri, TEXT) is None]
        if not unknown:
            return TEXT, [InputFile(path, size) for path, size in files.items()]
    if None in formats.values() or len(set(formats.values())) > 1:
        first, second = _two_formats(formats)
        raise ValueError(
            f"input must be all JSON lines, all Parquet or all text ({', '.join(_SUFFIXES)}), "
            f"got {first} and {second}"
        )
    return str(next(iter(formats.values()))), [InputFile(p, size) for p, size in files.items()]


def _format_of(path: str) -> str | None:
    name = path.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def _two_formats(formats: dict[str, str | None]) -> tuple[str, str]:
    by_format = {kind: path for path, kind in formats.items()}
    first, *others = by_format.values()
    return first, others[0] if others else "nothing else"


# Cutting


def cut(
    format: str, files: Sequence[InputFile], shard_bytes: int | None = None
) -> list[InputShard]:
    """Cut files into shards of about ``shard_bytes``; ``None`` makes about a thousand of 64 KiB to
    16 MiB.

    Raises:
        ValueError: a Parquet file that cannot be read.
    """
    if shard_bytes is None:
        wanted = sum(file.size for file in files) // _WANTED_SHARDS
        shard_bytes = max(_MIN_BYTES, min(_MAX_BYTES, wanted))
    pieces: Iterator[Piece]
    if format == TEXT:
        pieces = _cut_folder(files, shard_bytes)
    else:
        cut_file = _cut_lines if format == JSONL else _cut_parquet
        pieces = (piece for file in files for piece in cut_file(file, shard_bytes))
    return [
        InputShard(
            number=number, format=format, paths=paths, start=start, stop=stop, num_bytes=num_bytes
        )
        for number, (paths, start, stop, num_bytes) in enumerate(pieces)
    ]


def _cut_lines(file: InputFile, shard_bytes: int) -> Iterator[Piece]:
    if file.path.lower().endswith(COMPRESSED):
        yield (file.path,), 0, -1, file.size
        return
    for start in range(0, file.size, shard_bytes):
        stop = min(start + shard_bytes, file.size)
        yield (file.path,), start, stop, stop - start


def _cut_parquet(file: InputFile, shard_bytes: int) -> Iterator[Piece]:
    """Whole row groups, or equal slices of one that is larger than a shard."""
    metadata = parquet_metadata(file.path)
    row_bytes = file.size / max(1, metadata.num_rows)
    most = max(1, int(shard_bytes / row_bytes))
    start = group_start = 0
    pieces = []
    for group in range(metadata.num_row_groups):
        num_rows = metadata.row_group(group).num_rows
        end = group_start + num_rows
        if end - start > most:
            if start < group_start:
                pieces.append((start, group_start))
                start = group_start
            step = max(most, -(-num_rows // _MAX_SLICES))
            while end - start > step:
                pieces.append((start, start + step))
                start += step
        group_start = end
    if start < group_start:
        pieces.append((start, group_start))
    for start, stop in pieces:
        yield (file.path,), start, stop, int((stop - start) * row_bytes)


def _cut_folder(files: Sequence[InputFile], shard_bytes: int) -> Iterator[Piece]:
    paths: list[str] = []
    num_bytes = 0
    for file in files:
        if paths and num_bytes + file.size > shard_bytes:
            yield tuple(paths), 0, len(paths), num_bytes
            paths, num_bytes = [], 0
        paths.append(file.path)
        num_bytes += file.size
    yield tuple(paths), 0, len(paths), num_bytes


def parquet_metadata(path: str) -> Any:
    """A Parquet file's metadata.

    Raises:
        ValueError: there is none.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with open_file(path) as file:
            return parquet.read_metadata(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None
