"""Where a section is while it runs, in a file: the next process goes on from there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

RESTART = 3  # the exit code of a process that cannot use the device any longer
_NAME = "running.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A step of a case of a section.

    Args:
        section: its name.
        case: number of the case that runs, and ``case_name`` its name.
        step: number of the `Section.attempt` within it, from 1 on; 0 before the first.
        name: of this step.
    """

    section: str
    case: int
    case_name: str
    step: int
    name: str

    def write(self, folder: Path) -> None:
        (folder / _NAME).write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(folder: Path, section: str) -> Place | None:
        """The place that a process of this section has left; ``None`` if there is none."""
        path = folder / _NAME
        place = Place(**json.loads(path.read_text())) if path.exists() else None
        return place if place is not None and place.section == section else None

    @staticmethod
    def forget(folder: Path) -> None:
        (folder / _NAME).unlink(missing_ok=True)
