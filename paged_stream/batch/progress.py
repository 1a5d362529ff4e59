"""How far a batch is: workers tell a board, the driver shows it in a bar."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from paged_stream.system.progress_bar import progress_bar

_SHOW_SECONDS = 0.5


@dataclass(slots=True)
class BatchProgress:
    """Work done since the last report.

    Args:
        num_placed: engines that have a place in the cluster.
        num_engines: those of them that have loaded.
        num_rows: rows that have ended.
        num_bad: those of them that have no output.
        num_tokens: tokens that went through the model, in and out.
        num_bytes: of the input.
    """

    num_placed: int = 0
    num_engines: int = 0
    num_rows: int = 0
    num_bad: int = 0
    num_tokens: int = 0
    num_bytes: float = 0.0


class Board:
    """Adds up what workers tell; a Ray actor in a batch."""

    def __init__(self) -> None:
        self._total = BatchProgress()
        self._failure: str | None = None

    def add(self, progress: BatchProgress) -> None:
        for name, value in asdict(progress).items():
            setattr(self._total, name, getattr(self._total, name) + value)

    def total(self) -> BatchProgress:
        return self._total

    def fail(self, reason: str) -> None:
        """Note why a worker cannot work."""
        self._failure = self._failure or reason

    def failure(self) -> str | None:
        return self._failure


class Bar:
    """A bar over the input's bytes, since the number of rows is not known before they are read.

    Args:
        read: gives the board's totals.
        num_bytes: of the input that is to be done.
        num_engines: that are wanted.
        waiting: says what keeps engines from having a place.
        clock: seconds.
    """

    def __init__(
        self,
        read: Callable[[], BatchProgress],
        num_bytes: int,
        num_engines: int = 1,
        waiting: Callable[[], str] = lambda: "waiting for an engine",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._num_wanted = num_engines
        self._waiting = waiting
        self._clock = clock
        self._num_committed = 0
        self._begun = clock()
        self._started: float | None = None  # when the first engine was there
        self._stopped = threading.Event()
        self._bar: Any = progress_bar(
            total=num_bytes,
            unit="B",
            unit_scale=True,
            mininterval=0.0,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix} "
            "[{elapsed}<{remaining}]",
            postfix="waiting for an engine",
        )
        self._told: tuple[bool, int] | None = None
        self._thread = threading.Thread(target=self._show_for_ever, daemon=True)

    def __enter__(self) -> Bar:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()
        self._thread.join()
        self.show()
        self._bar.close()

    def commit(self) -> None:
        """Count a part that is committed."""
        self._num_committed += 1

    @property
    def seconds(self) -> float:
        """Since the first engine was there."""
        return 0.0 if self._started is None else self._clock() - self._started

    @property
    def start_seconds(self) -> float:
        """Until then, or now."""
        return (self._clock() if self._started is None else self._started) - self._begun

    def show(self) -> None:
        total = self._read()
        if self._started is None and not total.num_engines:
            self._show_waiting(is_placed=total.num_placed > 0)
            return
        if total == BatchProgress():
            return  # nothing any more
        if self._started is None:
            self._started = self._clock()
        self._bar.set_postfix_str(self._text(total), refresh=False)
        # A worker that died did some of it twice.
        self._bar.update(min(total.num_bytes, self._bar.total) - self._bar.n)

    def _text(self, total: BatchProgress) -> str:
        rates, seconds = "", self.seconds
        if seconds >= _SHOW_SECONDS:
            rates = (
                f", {total.num_rows / seconds:.1f} rows/s, {total.num_tokens / seconds:,.0f} tok/s"
            )
        few = total.num_engines < self._num_wanted
        return (
            (f"{total.num_engines} of {self._num_wanted} engines, " if few else "")
            + f"{self._num_committed:,} parts, {total.num_rows:,} rows{rates}"
            + (f", {total.num_bad:,} bad" if total.num_bad else "")
        )

    def _show_waiting(self, *, is_placed: bool) -> None:
        """Say what the first engine waits for, at first, when it has a place, and every minute."""
        told = is_placed, int(self.start_seconds // 60)
        if told != self._told:
            self._told = told
            text = "loading the model" if is_placed else self._waiting()
            self._bar.set_postfix_str(text + (f", for {told[1]} min" if told[1] else ""))

    def _show_for_ever(self) -> None:
        while not self._stopped.wait(_SHOW_SECONDS):
            self.show()
