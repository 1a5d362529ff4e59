"""Where streams are while a service does not hold them: files in a folder of each owner.

Clients name streams, never files: every name is checked before it becomes a part of a path.
"""

from __future__ import annotations

import fcntl
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paged_stream.system.whole_files import write_whole

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_STREAM, _RECORD, _SAVED = ".stream", ".json", "saved"
_log = logging.getLogger(__name__)


class StateDir:
    """The files of a service. A stream that rests here is in no engine.

    Args:
        root: the folder, which only its owner can read if it is made here.

    Raises:
        ValueError: nothing can be written there.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root)
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = (self._root / ".lock").open("w")
        except OSError as error:
            raise ValueError(f"state_dir={root!r} cannot be used: {error.strerror}") from None

    def claim(self) -> None:
        """Keep other services away, until `release` or the end of the process: two of them would go
        on from the same streams.

        Raises:
            ValueError: another service has it.
        """
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            root = str(self._root)
            raise ValueError(f"state_dir={root!r} is in use by another service") from None

    def release(self) -> None:
        """Leave the folder to others."""
        self._lock.close()

    def path_of(self, owner: str, stream_id: str) -> Path:
        """Where a stream rests."""
        return self._folder(owner) / (_checked(stream_id) + _STREAM)

    def path_of_saved(self, owner: str, name: str) -> Path:
        """Where a stream is that was saved under a name.

        Raises:
            ValueError: it is no name.
        """
        return self._folder(owner) / _SAVED / (_checked(name) + _STREAM)

    def make_folder_of(self, path: Path) -> None:
        """Make the folder of a file, which nobody else can read."""
        for folder in reversed(path.relative_to(self._root).parents):
            (self._root / folder).mkdir(mode=0o700, exist_ok=True)

    def resting(self) -> Iterator[tuple[str, str, float]]:
        """Owner and id of every stream that rests here, and when it was written (Unix time)."""
        for path in sorted(self._root.glob(f"*/*{_STREAM}")):
            yield path.parent.name, path.stem, path.stat().st_mtime

    def saved(self, owner: str) -> list[str]:
        """The names under which an owner has saved streams."""
        paths = (self._folder(owner) / _SAVED).glob(f"*{_STREAM}")
        return sorted(path.name.removesuffix(_STREAM) for path in paths)

    def num_saved(self, owner: str | None) -> int:
        """How many streams are saved under names, by one owner or by all."""
        return sum(1 for _ in self._root.glob(f"{owner or '*'}/{_SAVED}/*{_STREAM}"))

    def write_record(self, owner: str, stream_id: str, record: Any) -> None:
        """Write what is known of a stream beside itself, or of a conversation."""
        path = self._folder(owner) / (_checked(stream_id) + _RECORD)
        self.make_folder_of(path)
        write_whole(path, [json.dumps(record).encode()])

    def read_record(self, owner: str, stream_id: str) -> Any:
        """What `write_record` wrote; ``None`` if there is nothing or it is damaged."""
        path = self._folder(owner) / (_checked(stream_id) + _RECORD)
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be read: %s", path, error)
            return None

    def records(self, prefix: str) -> Iterator[tuple[str, str, Any]]:
        """Owner, id and content of every record whose id begins so."""
        for path in sorted(self._root.glob(f"*/{prefix}*{_RECORD}")):
            owner, stream_id = path.parent.name, path.stem
            if (record := self.read_record(owner, stream_id)) is not None:
                yield owner, stream_id, record

    def remove(self, owner: str, stream_id: str) -> None:
        """Remove what rests under an id."""
        for suffix in (_STREAM, _RECORD):
            (self._folder(owner) / (_checked(stream_id) + suffix)).unlink(missing_ok=True)

    def _folder(self, owner: str) -> Path:
        return self._root / owner


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "a name must have 1 to 64 letters, digits, '_', '-' and '.', and begin with none of "
            f"the last two, got {name!r}"
        )
    return name
