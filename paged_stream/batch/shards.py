"""Input files cut into shards, which depends on the files alone.

A shard is a part of one file or a few whole files. One task reads it, from its beginning to its
end, and its rows are counted from 0, bad ones too, so shard and row name an input for ever. A shard
that holds more than is committed at a time, such as a compressed file, is cut into parts as it is
read; see ``parts.py``.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from paged_stream.batch.footers import Cut
from paged_stream.batch.inputs import InputFile, InputFiles

TO_THE_END = -1
_MIN_BYTES, _MAX_BYTES, _WANTED_SHARDS = 64 << 10, 16 << 20, 1024
_UNPACKED = 4  # bytes in a byte of a compressed file, about


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file.

    Args:
        start: its first byte, or row group of a Parquet file.
        stop: one behind the last; `TO_THE_END` if it is the rest of the file.
    """

    file: InputFile
    start: int = 0
    stop: int = TO_THE_END


@dataclass(frozen=True, slots=True, kw_only=True)
class InputShard:
    """A part of the input.

    Args:
        num_bytes: its size in the files, for progress.
    """

    number: int
    pieces: tuple[Piece, ...]
    num_bytes: int


class Shards(Sequence[InputShard]):
    """The shards of a batch. They take little memory, so each is made when it is asked for."""

    def __init__(self, files: InputFiles) -> None:
        self._files = files
        # First file, one behind the last, start, stop, bytes; of each shard.
        self._numbers = array("q")

    def add(self, first: int, behind: int, start: int, stop: int, num_bytes: int) -> None:
        self._numbers.extend((first, behind, start, stop, num_bytes))

    def __len__(self) -> int:
        return len(self._numbers) // 5

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        first, behind, start, stop, num_bytes = self._numbers[5 * index : 5 * index + 5]
        pieces = tuple(Piece(file, start, stop) for file in self._files[first:behind])
        return InputShard(number=index, pieces=pieces, num_bytes=num_bytes)

    @property
    def num_bytes(self) -> int:
        return sum(self._numbers[4::5])


def part_bytes(files: InputFiles, shard_bytes: int | None) -> int:
    """Bytes of input that are committed at a time: what the user says, or such that there are about
    a thousand shards of 64 KiB to 16 MiB. Files that are added later change nothing."""
    if shard_bytes is not None:
        return shard_bytes
    return max(_MIN_BYTES, min(_MAX_BYTES, files.first_bytes // _WANTED_SHARDS))


def cut(files: InputFiles, num_bytes: int, cuts: Iterable[Cut] = ()) -> Shards:
    """Cut files into shards of about ``num_bytes``. Smaller files go together, but none with those
    of another addition.

    Args:
        cuts: one for each file, if they are tables.
    """
    shards = Shards(files)
    first = size = weight = 0

    def close(behind: int) -> None:
        nonlocal first, size, weight
        if size:
            shards.add(first, behind, 0, TO_THE_END, size)
        first, size, weight = behind, 0, 0

    for index, (file, its_cut) in enumerate(zip_longest(files, cuts)):
        is_empty = file.size == 0 or (its_cut is not None and its_cut.num_rows == 0)
        unpacked = file.size * (1 if file.kind.codec is None else _UNPACKED)
        if first < index and (weight + unpacked > num_bytes or index in files.starts):
            close(index)
        if unpacked > num_bytes and file.kind.can_be_cut and not is_empty:
            close(index)
            for start, stop, bytes_of_it in _cut_file(file, num_bytes, its_cut):
                shards.add(index, index + 1, start, stop, bytes_of_it)
            close(index + 1)
        elif not is_empty:
            size, weight = size + file.size, weight + unpacked
        elif first == index:
            close(index + 1)
    close(len(files))
    return shards


def _cut_file(file: InputFile, num_bytes: int, cut: Cut | None) -> Iterator[tuple[int, int, int]]:
    """Start, stop and bytes of the shards of one file."""
    if cut is not None:
        yield from cut.shards
        return
    for start in range(0, file.size, num_bytes):
        stop = min(start + num_bytes, file.size)
        yield start, stop, stop - start
