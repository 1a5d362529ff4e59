"""How far a long computation is: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

LINE_SECONDS = 10.0
DELAY_SECONDS = 3.0  # what is over sooner needs no bar
_LINE = "{desc}: {percentage:.0f}%, {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_fmt}]"


class Bar(tqdm):
    """A tqdm bar that starts no thread: an interpreter may end while one is being started."""

    monitor_interval = 0


class _Lines:
    """A file that writes each state of a bar as a line of its own, instead of over the last one."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._last = ""

    def write(self, text: str) -> None:
        text = text.strip()
        state = text.split(" [")[0]  # without the times
        if state and state != self._last:
            self._file.write(text + "\n")
            self._last = state

    def flush(self) -> None:
        self._file.flush()


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """Make a tqdm bar on standard error.

    If standard error is not a terminal, the bar writes a line at the start, then at most one every
    `LINE_SECONDS`, and one at the end.

    Args:
        iterable: what to iterate over, or ``None`` if ``update`` is called.
        options: of ``tqdm``: ``total``, ``unit``, ``desc``, ``initial``, ``delay``, ``disable``...
    """
    if not sys.stderr.isatty():
        options |= line_options(options.get("bar_format", _LINE))
    return Bar(iterable, **options)


def line_options(bar_format: str = _LINE) -> dict[str, Any]:
    """Options of a tqdm bar that writes a line on standard error every `LINE_SECONDS`."""
    return {
        "bar_format": bar_format,
        "file": _Lines(sys.stderr),
        "mininterval": LINE_SECONDS,
        "miniters": 1,
        "leave": True,
    }
