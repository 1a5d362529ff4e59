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
        num_engines: engines that have loaded.
        num_rows: rows that have ended.
        num_bad: those of them that have no output.
        num_tokens: tokens that went through the model, in and out.
        num_bytes: of the input.
    """

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
        clock: seconds.
    """

    def __init__(
        self,
        read: Callable[[], BatchProgress],
        num_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock = clock
        self._num_committed = 0
        self._begun = clock()
        self._started: float | None = None  # when the first engine was there
        self._last = BatchProgress()
        self._stopped = threading.Event()
        self._bar: Any = progress_bar(
            total=num_bytes,
            unit="B",
            unit_scale=True,
            mininterval=0.0,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix} "
            "[{elapsed}<{remaining}]",
            postfix="loading the model",
        )
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
        if total == BatchProgress():
            return  # nothing yet, or nothing any more
        if total.num_engines and self._started is None:
            self._started = self._clock()
        if self._started is not None:
            rates, seconds = "", self.seconds
            if seconds >= _SHOW_SECONDS:
                rates = f", {total.num_rows / seconds:.1f} rows/s"
                rates += f", {total.num_tokens / seconds:,.0f} tok/s"
            self._bar.set_postfix_str(
                f"{self._num_committed:,} parts, {total.num_rows:,} rows"
                + rates
                + (f", {total.num_bad:,} bad" if total.num_bad else ""),
                refresh=False,
            )
        # A worker that died did some of it twice.
        self._bar.update(min(total.num_bytes, self._bar.total) - self._bar.n)

    def _show_for_ever(self) -> None:
        while not self._stopped.wait(_SHOW_SECONDS):
            self.show()
