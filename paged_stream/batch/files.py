"""Files anywhere that pyarrow can reach, found by path or URI and replaced as a whole."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

_TMP = "tmp"


def open_filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow file system of a path or URI, and the path inside it.

    Raises:
        ValueError: pyarrow does not know the scheme, or the URI is broken.
    """
    import pyarrow
    from pyarrow import fs

    if "://" not in uri:
        return fs.LocalFileSystem(), os.path.abspath(uri)
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{uri}: {error}") from None
    return filesystem, path


@lru_cache(maxsize=8)
def _filesystem_of(root: str) -> Any:
    return open_filesystem(root)[0]


def open_file(uri: str) -> Any:
    """Open a file for reading at any place."""
    filesystem, path = _locate(uri)
    return filesystem.open_input_file(path)


def open_stream(uri: str) -> Any:
    """Open a file for reading from its beginning; a name like ``.gz`` means decompressing."""
    filesystem, path = _locate(uri)
    return filesystem.open_input_stream(path)


def _locate(uri: str) -> tuple[Any, str]:
    # Resolving a URI may take a look at the network, so it is done once per bucket.
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return open_filesystem(uri)
    bucket, slash, path = rest.partition("/")
    filesystem = _filesystem_of(f"{scheme}://{bucket}/")
    return filesystem, f"{bucket}/{path}" if bucket else slash + path


def list_files(uri: str) -> Iterator[tuple[str, int]]:
    """URI and size of a file, or of all files below a folder but hidden ones, by name.

    Raises:
        ValueError: there is nothing.
    """
    from pyarrow import fs

    filesystem, path = open_filesystem(uri)
    info = filesystem.get_file_info(path)
    prefix = uri[: len(uri.rstrip("/")) - len(path.rstrip("/"))] if "://" in uri else ""
    if info.type == fs.FileType.File:
        yield prefix + path, info.size
        return
    if info.type == fs.FileType.NotFound:
        raise ValueError(f"input {uri!r} does not exist")
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    for info in sorted(found, key=lambda info: info.path):
        below = info.path[len(path) :].split("/")
        if info.type == fs.FileType.File and not any(part.startswith((".", "_")) for part in below):
            yield prefix + info.path, info.size


class OutputFolder:
    """A folder whose files appear whole or not at all, also when the power goes.

    Args:
        uri: a path or URI that every node sees.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._filesystem, self._root = open_filesystem(uri)
        self._is_local = self._filesystem.type_name == "local"

    def make(self, *folders: str) -> None:
        """Create the folder with these inside; throw away what unfinished writes left."""
        for folder in folders:
            self._filesystem.create_dir(f"{self._root}/{folder}", recursive=True)
        self.clean()
        self._filesystem.create_dir(f"{self._root}/{_TMP}", recursive=True)

    def clean(self) -> None:
        """Remove what unfinished writes left."""
        self._filesystem.delete_dir_contents(f"{self._root}/{_TMP}", missing_dir_ok=True)

    def write(self, name: str, write: Callable[[Any], object]) -> int:
        """Make a file what ``write`` puts into the binary stream it is given; returns its size."""
        target = f"{self._root}/{name}"
        # A name of its own: another process may write the same file, with the same content.
        part = f"{self._root}/{_TMP}/{uuid.uuid4().hex}"
        with self._filesystem.open_output_stream(part) as stream:
            write(stream)
            size: int = stream.tell()
        if self._is_local:
            _sync(part)
        self._filesystem.move(part, target)
        if self._is_local:
            _sync(os.path.dirname(target))
        return size

    def read(self, name: str) -> bytes | None:
        """A file's content; ``None`` if there is none."""
        try:
            with self._filesystem.open_input_stream(f"{self._root}/{name}") as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Remove a file if there is one."""
        try:
            self._filesystem.delete_file(f"{self._root}/{name}")
        except FileNotFoundError:
            pass

    def names(self, folder: str) -> list[str]:
        """Names of the files in one of its folders."""
        from pyarrow import fs

        selector = fs.FileSelector(f"{self._root}/{folder}", allow_not_found=True)
        return sorted(info.base_name for info in self._filesystem.get_file_info(selector))


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
