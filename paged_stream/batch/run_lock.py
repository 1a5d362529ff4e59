"""Which driver works on a run's folder, so that no other computes the same.

The driver's file in the folder changes as long as it lives. Nobody's clock is trusted: another
driver looks at whether the file changes. Two that begin at one moment may both go on until the file
changes next, which costs time and nothing else: the same part is the same bytes.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import threading
import time
import uuid
from typing import Any

from paged_stream.batch.files import OutputFolder

logger = logging.getLogger(__name__)
LOCK = "driver.json"
_BEAT_SECONDS, _SILENT_SECONDS = 5.0, 30.0


class RunLock:
    """Held while it is entered.

    Args:
        folder: of the run; it has been made.
        beat_seconds: the file changes so often.
        silent_seconds: a driver whose file has not changed for so long is dead.

    Raises:
        ValueError: on entering: another driver works on the run.
    """

    def __init__(
        self,
        folder: OutputFolder,
        beat_seconds: float = _BEAT_SECONDS,
        silent_seconds: float = _SILENT_SECONDS,
    ) -> None:
        self._folder = folder
        self._beat_seconds = beat_seconds
        self._silent_seconds = silent_seconds
        self._about = {
            "id": uuid.uuid4().hex,
            "user": _user(),
            "machine": _machine(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        self._num_beats = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat_for_ever, daemon=True)
        self._successor: dict[str, Any] | None = None

    def __enter__(self) -> RunLock:
        self._wait_for_silence()
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._successor is None:
            self._folder.remove(LOCK)

    def check(self) -> None:
        """Raises ValueError if another driver has taken this one for dead."""
        if self._successor is not None:
            raise ValueError(f"{self._folder.uri}: {_name(self._successor)} has taken over the run")

    def _wait_for_silence(self) -> None:
        """Wait until whoever may hold the lock is known to be dead.

        Raises:
            ValueError: it lives.
        """
        first = self._read()
        if first is None or _is_dead(first):
            return
        logger.warning(
            "%s: %s may be at work on this run; looking for signs of life for %g s",
            self._folder.uri,
            _name(first),
            self._silent_seconds,
        )
        deadline = time.monotonic() + self._silent_seconds
        while time.monotonic() < deadline:
            time.sleep(self._beat_seconds / 5)
            now = self._read()
            if now is None or _is_dead(now):
                return
            if now != first:
                raise ValueError(
                    f"output {self._folder.uri} is being written by {_name(now)}, since "
                    f"{now['since']}; wait for it, or stop it"
                )

    def _read(self) -> dict[str, Any] | None:
        content = self._folder.read(LOCK)
        return None if content is None else json.loads(content)

    def _beat(self) -> None:
        self._num_beats += 1
        content = json.dumps({**self._about, "beats": self._num_beats}).encode()
        self._folder.write(LOCK, lambda stream: stream.write(content), unfinished=f"{LOCK}.new")

    def _beat_for_ever(self) -> None:
        while not self._stopped.wait(self._beat_seconds):
            try:
                found = self._read()
                if found is not None and found["id"] != self._about["id"]:
                    self._successor = found
                    return
                self._beat()
            except OSError as error:  # the next one may succeed
                logger.debug("%s: %s", LOCK, error)


def _name(about: dict[str, Any]) -> str:
    machine = about["machine"].partition(" ")[0]
    return f"{about['user']} on {machine} (process {about['pid']})"


def _is_dead(about: dict[str, Any]) -> bool:
    """Whether a driver is known to be dead, which only its own machine can know at once."""
    if about["machine"] != _machine():
        return False
    try:
        os.kill(about["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _machine() -> str:
    """This machine, and on Linux its numbering of processes: a container has its own."""
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as nobody in particular
        return str(os.getuid())
