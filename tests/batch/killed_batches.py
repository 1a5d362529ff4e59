"""Batches that somebody is killed in as soon as so many shards are committed, however fast they
are. The workers of a batch are classes of this module in another process, so they are made by
functions: Ray sends such classes whole, and no worker has to import the tests."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from paged_stream.batch import shard_run
from paged_stream.batch.shard_worker import ShardWorker
from paged_stream.cli import main


def kill_a_worker(monkeypatch: pytest.MonkeyPatch, output: Path, count: int, mark: Path) -> None:
    """Let one worker kill itself when ``count`` shards are there. It leaves ``mark``."""

    class Mortal(ShardWorker):
        def _commit(self, *args, **how):
            counts = super()._commit(*args, **how)
            if len(list((output / "shards").iterdir())) >= count:
                with suppress(FileExistsError):  # one has died already
                    mark.touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            return counts

    monkeypatch.setattr(shard_run, "ShardWorker", Mortal)


def stop_at(output: Path, count: int, pipe: Path) -> None:
    """Let the only worker commit ``count`` shards, say so in ``pipe``, and do nothing more."""

    class Halting(ShardWorker):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            self._lock = threading.Lock()

        def _commit(self, *args, **how):
            with self._lock:
                counts = super()._commit(*args, **how)
                if len(list((output / "shards").iterdir())) == count:
                    pipe.write_text("halted")
                    threading.Event().wait()
            return counts

    mock.patch.object(shard_run, "ShardWorker", Halting).start()


if __name__ == "__main__":
    output, count, pipe, *arguments = sys.argv[1:]
    stop_at(Path(output), int(count), Path(pipe))
    try:
        main(arguments)
    finally:
        Path(pipe).write_text("ended")
