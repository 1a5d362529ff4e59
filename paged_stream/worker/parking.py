"""K and V of parked sequences: in host memory up to a budget, beyond it on disk."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from paged_stream.models.kv_tokens import KVTokens
from paged_stream.worker.lanes import Mark

logger = logging.getLogger(__name__)


class ParkedStore:
    """Holds what was taken out of the cache until it is wanted again.

    Args:
        memory_bytes: host memory to use; what was stored first goes to disk.
        folder: where a temporary one for the files is made; ``None`` is the system's. It goes away
            with the store.
    """

    def __init__(self, memory_bytes: int, folder: Path | None = None) -> None:
        self.memory_bytes = memory_bytes
        self.host_bytes = 0
        self.disk_bytes = 0
        self._folder = folder
        self._files: Path | None = None
        self._remove_files: Callable[[], object] = lambda: None
        self._host: OrderedDict[int, KVTokens] = OrderedDict()
        self._disk: dict[int, tuple[Path, int]] = {}
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
        """Look at what is stored, which stays."""
        if key in self._host:
            self._await(key)
            return self._host[key]
        return KVTokens(**load_file(self._disk[key][0]))

    def pop(self, key: int) -> KVTokens:
        tokens = self.read(key)
        self.drop(key)
        return tokens

    def drop(self, key: int) -> None:
        self._arrivals.pop(key, None)
        if key in self._host:
            self.host_bytes -= self._host.pop(key).nbytes
        else:
            path, num_bytes = self._disk.pop(key)
            self.disk_bytes -= num_bytes
            path.unlink(missing_ok=True)

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
        path = None
        try:
            path = self._file(key)
            self._await(key)
            save_file(tokens._asdict(), path)
        except (OSError, SafetensorError) as error:
            if path is not None:
                path.unlink(missing_ok=True)
            logger.warning("cannot park on disk, so host memory is used: %s", error)
            return False
        self._disk[key] = path, tokens.nbytes
        self.disk_bytes += tokens.nbytes
        self.host_bytes -= self._host.pop(key).nbytes
        return bool(self._host)

    def _await(self, key: int) -> None:
        if (arrival := self._arrivals.pop(key, None)) is not None:
            arrival.reach()

    def _file(self, key: int) -> Path:
        if self._files is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._files = Path(tempfile.mkdtemp(prefix="parked-", dir=self._folder))
            self._remove_files = weakref.finalize(self, _remove, self._files, os.getpid())
        return self._files / f"{key}.safetensors"


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has a copy of the store, and the files are the parent's
        shutil.rmtree(folder, ignore_errors=True)
