"""The files of a batch, kept as columns, so that a million of them take little memory."""

from __future__ import annotations

import errno
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

from paged_stream.batch.files import open_filesystem
from paged_stream.batch.formats import FileKind

_BATCH = 65536  # paths that are made an Arrow array together


@dataclass(frozen=True, slots=True)
class Place:
    """Where one input of the user lies.

    Args:
        uri: the input, with its options.
        base: the path of its folder inside the file system. Below it, folders like ``year=2024``
            are columns.
    """

    uri: str
    base: str

    @property
    def filesystem(self) -> Any:
        return open_filesystem(self.uri)[0]

    def display(self, path: str) -> str:
        """A path as the user would write it, without options."""
        scheme, separator, _ = self.uri.partition("://")
        return f"{scheme}://{path}" if separator and "://" not in path else path


@dataclass(frozen=True, slots=True)
class InputFile:
    place: Place
    path: str
    size: int
    kind: FileKind

    @property
    def name(self) -> str:
        return self.place.display(self.path)

    @property
    def is_local(self) -> bool:
        return self.place.filesystem.type_name == "local"

    def open(self) -> Any:
        """The file for reading at any place, as it lies."""
        import pyarrow as pa

        open_file = self.place.filesystem.open_input_file
        if self.is_local:
            return open_file(self.path)
        return pa.PythonFile(Remote(open_file, self), "r")

    def open_stream(self) -> tuple[Any, Callable[[], int]]:
        """The file for reading from its beginning, unpacked; and what tells how many bytes of it
        have been read, as it lies."""
        import pyarrow as pa

        if self.is_local:
            raw = self.open()
            tell = raw.tell
        else:
            open_stream = self.place.filesystem.open_input_stream
            remote = Remote(partial(open_stream, compression=None), self)
            raw, tell = pa.PythonFile(remote, "r"), remote.num_read
        codec = self.kind.codec
        return (raw if codec is None else pa.CompressedInputStream(raw, codec)), tell

    def partition(self) -> dict[str, str | None]:
        """Columns that its folders name, as Hive writes them."""
        folders = self.path.removeprefix(self.place.base).split("/")[:-1]
        pairs = (folder.partition("=") for folder in folders if "=" in folder)
        values = {unquote(name): unquote(value) for name, _, value in pairs if name}
        return {k: None if v == "__HIVE_DEFAULT_PARTITION__" else v for k, v in values.items()}


@contextmanager
def numbered(name: str) -> Iterator[None]:
    """Give errors of a file elsewhere a number, as those of local files have. What pyarrow says of
    a damaged file has none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(errno.EIO, f"{name}: {error}") from error


class Remote:
    """A file elsewhere, as Python's files are."""

    def __init__(self, open_path: Callable[[str], Any], file: InputFile) -> None:
        self._name = file.name
        with numbered(self._name):
            self._stream = open_path(file.path)
        self._num_read = 0
        self.closed = False
        self.mode = "rb"

    def num_read(self) -> int:
        return self._num_read

    def read(self, num_bytes: int = -1) -> bytes:
        with numbered(self._name):
            data: bytes = self._stream.read(None if num_bytes < 0 else num_bytes)
        self._num_read += len(data)
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        position: int = self._stream.seek(place, whence)
        return position

    def tell(self) -> int:
        position: int = self._stream.tell()
        return position

    def seekable(self) -> bool:
        seekable: bool = self._stream.seekable()
        return seekable

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
        self._stream.close()


class InputFiles(Sequence[InputFile]):
    """Files in the order that they are read in.

    Attributes:
        num_skipped: files beside them that are no data.
        starts: the index of the first file of the beginning, which is 0, and of each addition.
    """

    def __init__(self) -> None:
        self.num_skipped = 0
        self.starts = [0]
        self._places: list[Place] = []
        self._kinds: list[FileKind] = []
        self._chunks: list[Any] = []  # Arrow arrays of paths, full ones
        self._paths: list[str] = []  # those of the last, which fills up
        self._sizes = array("q")
        self._place_of = array("I")
        self._kind_of = array("B")

    def add(self, file: InputFile) -> None:
        import pyarrow as pa

        if not self._places or self._places[-1] != file.place:
            self._places.append(file.place)
        if file.kind not in self._kinds:
            self._kinds.append(file.kind)
        self._paths.append(file.path)
        if len(self._paths) == _BATCH:
            self._chunks.append(pa.array(self._paths, pa.string()))
            self._paths = []
        self._sizes.append(file.size)
        self._place_of.append(len(self._places) - 1)
        self._kind_of.append(self._kinds.index(file.kind))

    def begin_addition(self) -> None:
        """Say that the next files were added to a run later."""
        self.starts.append(len(self))

    @property
    def last_addition(self) -> int:
        """The number of the last addition; 0 if there is none."""
        return len(self.starts) - 1

    def addition_of(self, index: int) -> int:
        """The number of the addition that a file came with; 0 if it was there at the beginning."""
        return bisect_right(self.starts, index) - 1

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        chunk, offset = divmod(index, _BATCH)
        is_full = chunk < len(self._chunks)
        path = self._chunks[chunk][offset].as_py() if is_full else self._paths[offset]
        place, kind = self._places[self._place_of[index]], self._kinds[self._kind_of[index]]
        return InputFile(place, path, self._sizes[index], kind)

    @property
    def kinds(self) -> Sequence[FileKind]:
        """All kinds of files that there are."""
        return self._kinds

    @property
    def first_bytes(self) -> int:
        """Bytes of the files that were there at the beginning."""
        return sum(self._sizes[: self.starts[1] if self.last_addition else None])

    def first_of(self, family: str) -> InputFile:
        """The first file of a family."""
        return next(file for file in self if file.kind.family == family)
