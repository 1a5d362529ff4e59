"""Weights are finite numbers that their dtype can hold: looked at once per file, and remembered.

What is remembered is the largest magnitude in a model's files, with their sizes and times, so that
a file that was written anew is looked at anew.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path

from paged_stream.system.short_text import short
from paged_stream.system.whole_files import write_whole

logger = logging.getLogger(__name__)

_RECORD = "largest.json"


class Largest:
    """The largest magnitude of all tensors that were noted.

    Args:
        limit: how large one may be.
    """

    def __init__(self, limit: float = math.inf) -> None:
        self.value = 0.0
        self._limit = limit

    def note(self, name: str, low: float, high: float) -> None:
        """Look at a tensor.

        Args:
            low: its smallest number, or NaN if any number is NaN; ``high`` is its largest.

        Raises:
            ValueError: a number is NaN, infinite or too large; names the tensor.
        """
        magnitude = max(abs(low), abs(high))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"tensor {short(name)} has a number that is NaN or infinite")
        if magnitude > self._limit:
            raise ValueError(
                f"tensor {short(name)} has {magnitude:.4g}, which the dtype of the weights cannot "
                f"hold: its largest number is {self._limit:.4g}; use dtype='float32'"
            )
        self.value = max(self.value, magnitude)


def remembered_largest(folder: Path, paths: Iterable[Path]) -> float | None:
    """The largest magnitude in files, if they were looked at; ``None`` otherwise.

    Args:
        folder: where that is remembered.
    """
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        if record["files"] == _stamps(paths):
            return float(record["largest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # there is none, or it is damaged: then the files are looked at again
    return None


def remember_largest(folder: Path, paths: Iterable[Path], largest: float) -> None:
    """Keep what was found. A folder that cannot be written to costs a look at every start."""
    record = json.dumps({"files": _stamps(paths), "largest": largest})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / _RECORD, [record.encode()])
    except OSError as error:
        logger.info("the weights will be checked again at the next start: %s", error)


def _stamps(paths: Iterable[Path]) -> dict[str, list[int]]:
    stats = {path.name: path.stat() for path in paths}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
