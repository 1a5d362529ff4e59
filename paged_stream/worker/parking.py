"""K and V of parked sequences: in host memory up to a budget, beyond it on disk."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paged_stream.models.kv_file import checksum, read_header, read_tokens, to_pieces
from paged_stream.models.kv_tokens import KVTokens
from paged_stream.scheduler.output import ParkedLostError
from paged_stream.system.whole_files import read_regular, remove_abandoned, write_all
from paged_stream.worker.lanes import Mark

logger = logging.getLogger(__name__)

_PREFIX = "paged-stream-parked-"


@dataclass(frozen=True, slots=True)
class _Spilled:
    """A file, the bytes of K and V in it, and the checksum of its header, which has theirs: a file
    of another sequence is as wrong as a damaged one."""

    path: Path
    nbytes: int
    header: str


class ParkedStore:
    """Holds what was taken out of the cache until it is wanted again.

    Args:
        memory_bytes: host memory to use; what was stored first goes to disk.
        folder: where a temporary one for the files is made; ``None`` is the system's. It goes away
            with the store, or if the process dies, when the next store makes one beside it.
    """

    def __init__(self, memory_bytes: int, folder: Path | None = None) -> None:
        self.memory_bytes = memory_bytes
        self.host_bytes = 0
        self.disk_bytes = 0
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._files: Path | None = None
        self._remove_files: Callable[[], object] = lambda: None
        self._is_disk_usable = True
        self._host: OrderedDict[int, KVTokens] = OrderedDict()
        self._disk: dict[int, _Spilled] = {}
        self._arrivals: dict[int, Mark] = {}

    def put(self, key: int, tokens: KVTokens, arrival: Mark | None = None) -> None:
        """Store tokens, which may still be on their way until ``arrival``."""
        assert key not in self._host and key not in self._disk, f"{key} is parked already"
        self._host[key] = tokens
        if arrival is not None:
            self._arrivals[key] = arrival
        self.host_bytes += tokens.nbytes
        while self.host_bytes > self.memory_bytes and self._spill_first():
            pass

    def read(self, key: int) -> KVTokens:
        """Look at what is stored, which stays.

        Raises:
            ParkedLostError: its file is gone or was altered; names the file.
        """
        if key in self._host:
            self._await(key)
            return self._host[key]
        spilled = self._disk[key]
        try:
            content = read_regular(spilled.path)
            header = read_header(content)
            if checksum(content[: header.size]) != spilled.header:
                raise ValueError("it has another header than was written")
            return read_tokens(content, header)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ParkedLostError(f"{spilled.path}: {reason}") from error

    def drop(self, key: int) -> None:
        self._arrivals.pop(key, None)
        if key in self._host:
            self.host_bytes -= self._host.pop(key).nbytes
        else:
            spilled = self._disk.pop(key)
            self.disk_bytes -= spilled.nbytes
            try:
                spilled.path.unlink(missing_ok=True)
            except OSError as error:  # somebody has put something else there, or locked the folder
                logger.warning("cannot remove a parked file: %s", error)

    def close(self) -> None:
        """Let go of everything and remove the files; harmless twice."""
        self._host.clear()
        self._disk.clear()
        self._arrivals.clear()
        self.host_bytes = self.disk_bytes = 0
        self._remove_files()

    def location(self, key: int) -> Literal["host", "disk"]:
        return "host" if key in self._host else "disk"

    def _spill_first(self) -> bool:
        """Write what has been in memory for longest to disk; False if that cannot be."""
        key, tokens = next(iter(self._host.items()))
        try:
            spilled = self._write(key, tokens)
        except OSError as error:
            if self._is_disk_usable:  # said once: a full disk may refuse thousands of streams
                logger.warning("cannot park on disk, so host memory is used: %s", error)
            self._is_disk_usable = False
            return False
        self._is_disk_usable = True
        self._disk[key] = spilled
        self.disk_bytes += tokens.nbytes
        self.host_bytes -= self._host.pop(key).nbytes
        return bool(self._host)

    def _write(self, key: int, tokens: KVTokens) -> _Spilled:
        path = self._own_folder() / f"{key}.safetensors"
        self._await(key)
        pieces = to_pieces(tokens, {})
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                write_all(descriptor, pieces)
            finally:
                os.close(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return _Spilled(path, tokens.nbytes, checksum(pieces[0]))

    def _await(self, key: int) -> None:
        if (arrival := self._arrivals.pop(key, None)) is not None:
            arrival.reach()

    def _own_folder(self) -> Path:
        """The folder of this store's files, locked as long as this process lives."""
        if self._files is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for other in self._folder.glob(f"{_PREFIX}*"):
                if remove_abandoned(other):
                    logger.info("removed %s, which a process has left that was killed", other)
            self._files, lock = _locked_folder(self._folder)
            self._remove_files = weakref.finalize(self, _remove, self._files, lock, os.getpid())
        return self._files


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder; returns it and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # another process took it for an abandoned one
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


def _remove(folder: Path, lock: int, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has a copy of the store, and the files are the parent's
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
