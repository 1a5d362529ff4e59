"""Files that appear whole or not at all, and are read only if they are regular files."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

Piece: TypeAlias = bytes | bytearray | memoryview

# What a file system, or its kernel, says that has no files without a name.
_NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
_SUFFIX = ".paged-stream"  # of the other name


def write_whole(path: Path, pieces: Iterable[Piece]) -> None:
    """Write a file, and replace one that is there. A process that dies while it writes, or a disk
    that is full, leaves what was there before.

    Where the file system can, the file has no name until it is written, and then another one for a
    moment, for a link replaces nothing. Elsewhere it has the other name from the start. A process
    that is killed meanwhile leaves that behind, and the next write of the same path removes it.

    Raises:
        OSError: names ``path``.
    """
    try:
        with _opened(path.parent, os.O_RDONLY) as folder:
            for other in path.parent.glob(f".{glob.escape(path.name)}.*{_SUFFIX}"):
                remove_abandoned(other)
            with _new_file(path) as (descriptor, name):
                write_all(descriptor, pieces)
                os.fsync(descriptor)
                if name is None:
                    name = _other_name(path)
                    # Without a descriptor of the folder, Python would link the symbolic link.
                    os.link(f"/proc/self/fd/{descriptor}", name.name, dst_dir_fd=folder)
                try:
                    os.replace(name, path)
                except BaseException:
                    name.unlink(missing_ok=True)
                    raise
            os.fsync(folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # it may name others


def _other_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_SUFFIX}")


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _new_file(path: Path) -> Iterator[tuple[int, Path | None]]:
    """Open a file in the folder of ``path``, locked as long as it is open, and its name if it has
    one, which goes away if what is done with the file fails."""
    try:
        if (flag := getattr(os, "O_TMPFILE", None)) is None:
            raise OSError(errno.EOPNOTSUPP, "this system has no files without a name")
        descriptor = os.open(path.parent, flag | os.O_WRONLY, 0o600)
        name = None
    except OSError as error:
        if error.errno not in _NO_UNNAMED:
            raise
        descriptor, name = _new_named(path)
    try:
        if name is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor, name
    except BaseException:
        if name is not None:
            name.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _new_named(path: Path) -> tuple[int, Path]:
    """As `_new_file`, where every file has a name."""
    while True:
        name = _other_name(path)
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if name.exists():
            return descriptor, name
        os.close(descriptor)  # another writer took it for an abandoned one before it was locked


def remove_abandoned(path: Path) -> bool:
    """Remove a file or a folder that was locked by a process that has died: nobody holds its lock.
    Returns whether it was."""
    try:
        with _opened(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            return True
    except OSError:  # it is locked, gone, or another user's
        return False


def write_all(descriptor: int, pieces: Iterable[Piece]) -> None:
    """Write pieces one after the other; the system may take fewer bytes at a time.

    Raises:
        OSError: the disk is full, for example.
    """
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def read_regular(path: Path) -> bytearray:
    """Read a file, if it is one: opening a FIFO would wait for its other end, and a device may
    have no end.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is no regular file, or cannot be read.
    """
    with _opened(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        content = bytearray(status.st_size)
        with memoryview(content) as view:
            num_read = 0
            while num_read < len(view) and (count := os.readv(descriptor, [view[num_read:]])):
                num_read += count
    del content[num_read:]  # it may have been cut meanwhile
    return content
