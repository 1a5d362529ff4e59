"""File systems by path or URI, and a folder whose files are replaced as a whole."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

_TMP = "tmp"
# What pyarrow reads itself. Every other scheme is fsspec's.
_ARROW_SCHEMES = ("s3", "gs", "gcs", "file", "hdfs", "viewfs", "abfs", "abfss")
_SAFE = "%/:@?&=+,;$-_.~!*'()"  # characters that a URI may have as they are


def open_filesystem(uri: str) -> tuple[Any, str]:
    """The pyarrow file system of a path or URI, and the path inside it.

    Args:
        uri: options of pyarrow's file systems stand behind a ``?``. Those of fsspec are in its
            configuration files and variables.

    Raises:
        ValueError: neither pyarrow nor fsspec knows the scheme, or the URI is broken.
    """
    from pyarrow import fs

    scheme, separator, rest = uri.partition("://")
    if not separator:
        return fs.LocalFileSystem(), os.path.abspath(uri)
    if scheme not in _ARROW_SCHEMES:
        return _open_fsspec(uri)
    location, mark, options = rest.partition("?")
    host, _, path = location.partition("/")
    filesystem, base = _resolve(f"{scheme}://{host}/{mark}{options}")
    return filesystem, f"{base.rstrip('/')}/{unquote(path)}".rstrip("/") or "/"


@lru_cache(maxsize=64)
def _resolve(root: str) -> tuple[Any, str]:
    """Resolving a URI may take a look at the network, so it is done once per bucket."""
    import pyarrow
    from pyarrow import fs

    try:
        resolved: tuple[Any, str] = fs.FileSystem.from_uri(quote(root, safe=_SAFE))
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{hide_secrets(root)}: {error}") from None
    return resolved


def _open_fsspec(uri: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs
    from pyarrow import fs

    try:
        filesystem, path = url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        raise ValueError(f"{hide_secrets(uri)}: {error}") from None
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def hide_secrets(uri: str) -> str:
    """A URI without options and what stands before its host's ``@``, for people to read."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    authority, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


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
        """Create the folder with these inside."""
        for folder in (*folders, _TMP):
            self._filesystem.create_dir(f"{self._root}/{folder}", recursive=True)

    def clean(self) -> None:
        """Remove what unfinished writes left."""
        self._filesystem.delete_dir_contents(f"{self._root}/{_TMP}", missing_dir_ok=True)

    def write(
        self, name: str, write: Callable[[Any], object], *, unfinished: str | None = None
    ) -> int:
        """Make a file what ``write`` puts into the binary stream it is given; returns its size.

        Args:
            unfinished: the file's name until it is whole. By default one that nobody else has, as
                another process may write the same file, with the same content; `clean` removes it.
        """
        target = f"{self._root}/{name}"
        part = f"{self._root}/{unfinished or f'{_TMP}/{uuid.uuid4().hex}'}"
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
