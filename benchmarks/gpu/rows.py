"""The results: a file of rows, each a line of JSON, and what they look like as text.

A row has the ``section`` and ``case`` that it is of, and a ``name``. It says whether something
holds (``ok``), or gives a ``value`` in a ``unit``; ``share`` is that of the ceiling named by
``of``, and ``wanted`` what it should reach. What was left out has the ``value`` null, and
``skipped`` says why. A row with ``planned`` stands for a case until that has rows of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
NAME = "gpu_check.jsonl"


def write_row(path: Path, row: Row) -> None:
    """Add a row to the file, where it stays whatever happens to this process."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def plan_row(section: str, case: str | None) -> Row:
    """A row for what has not run yet: a case, or a section whose cases are not known yet."""
    name = section if case is None else case
    row = {"section": section, "case": case, "name": name, "value": None}
    return row | {"skipped": "it was not reached", "planned": True}


def read_rows(path: Path) -> list[Row]:
    """All rows but those that stood for others that came."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    begun = {row["section"] for row in rows if row["case"] is not None or "planned" not in row}
    cases = {(row["section"], row["case"]) for row in rows if "planned" not in row}

    def is_needed(row: Row) -> bool:
        if "planned" not in row:
            return True
        if row["case"] is None:
            return row["section"] not in begun
        return (row["section"], row["case"]) not in cases

    return list({json.dumps(row): row for row in rows if is_needed(row)}.values())


def value_of(rows: Sequence[Row], section: str, name: str) -> float | None:
    """A measured value, ``None`` if it was not measured."""
    return next((r["value"] for r in rows if (r["section"], r["name"]) == (section, name)), None)


def exit_code(rows: Sequence[Row]) -> int:
    """1 if something does not hold, 2 if nothing does that but something was left out, else 0."""
    if any(row.get("ok") is False for row in rows):
        return 1
    return 2 if any("skipped" in row for row in rows) else 0


def line_of(row: Row) -> str:
    """One row as a line of a table."""
    if "skipped" in row:
        return f"  skipped  {row['name']}: {row['skipped']}"
    if "value" not in row:
        verdict = "ok      " if row["ok"] else "FAILED  "
        return f"  {verdict} {row['name']}{_details(row)}"
    text = f"           {row['name']:<52} {row['value']:>10.4g} {row['unit']:<9}"
    if row.get("share") is not None:
        text += f" {row['share']:>6.1%} of {row['of']}"
    if "wanted" in row:
        text += f" (wanted {row['wanted']})"
    return text


def _details(row: Row) -> str:
    keys = [key for key in row if key not in ("section", "case", "name", "ok", "detail")]
    text = "".join(f" {key}={row[key]}" for key in keys)
    return text + ("\n" + row["detail"] if "detail" in row else "")


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as text, by section: failures in full, what was left out, all that was measured."""
    for section in dict.fromkeys(row["section"] for row in rows):
        members = [row for row in rows if row["section"] == section]
        verdicts = [row for row in members if "ok" in row]
        passed = sum(row["ok"] for row in verdicts)
        yield f"{section}: {passed} of {len(verdicts)} hold" if verdicts else f"{section}:"
        for row in members:
            if not row.get("ok", False):
                yield line_of(row)
