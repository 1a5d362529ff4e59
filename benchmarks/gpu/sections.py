"""What a section of the check is given, and what it leaves: rows, each a line of JSON.

A row has a ``name`` and either says whether something holds (``ok``), or gives a ``value`` in a
``unit``; ``share`` is that of the ceiling named by ``of``, and ``wanted`` what it should reach.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is done.

    Args:
        shapes: of models to measure, by their names in `models.SHAPES`.
        streams: batch sizes of the attention kernels.
        visible: keys that each of these streams sees.
        decode_batches: batch sizes of whole decode steps, with the keys that each stream sees.
        prompt: tokens of a prefill, in one chunk.
        caches: keys that a stream sees, in the comparison with recomputation.
        families: variants of tiny models, see ``tests/family_reference.py``.
        copy_bytes: of the copy that shows the bandwidth; ``matrix`` is the product's size.
        repeats: of each measurement.
    """

    shapes: tuple[str, ...]
    streams: tuple[int, ...]
    visible: int
    decode_batches: tuple[tuple[int, int], ...]
    prompt: int
    caches: tuple[int, ...]
    families: tuple[str, ...]
    copy_bytes: int
    matrix: int
    repeats: int


FULL = Sizes(
    shapes=("llama-2-7b", "llama-2-13b"),
    streams=(32, 256),
    visible=4096,
    decode_batches=((1, 4096), (32, 2048), (128, 512)),
    prompt=8192,
    caches=(256, 512, 1024, 2048, 4096),
    families=("llama3", "qwen2", "qwen3", "gemma2", "phi3", "gptj", "mpt", "falcon_rw", "gpt2"),
    copy_bytes=4 << 30,
    matrix=8192,
    repeats=20,
)
QUICK = Sizes(
    shapes=("llama-2-7b",),
    streams=(32,),
    visible=4096,
    decode_batches=((1, 4096), (32, 2048)),
    prompt=4096,
    caches=(256, 4096),
    families=("llama3", "gemma2"),
    copy_bytes=1 << 30,
    matrix=8192,
    repeats=7,
)
# So small that a processor goes through all of it in seconds: to test the check itself.
TINY = Sizes(
    shapes=("tiny",),
    streams=(2,),
    visible=40,
    decode_batches=((1, 40), (3, 24)),
    prompt=48,
    caches=(16, 32),
    families=("llama3",),
    copy_bytes=1 << 16,
    matrix=64,
    repeats=2,
)


class Section:
    """One section while it runs: its device, its time and its file of rows."""

    def __init__(
        self, name: str, device: torch.device, sizes: Sizes, seconds: float, path: Path
    ) -> None:
        self.name, self.device, self.sizes, self.path = name, device, sizes, path
        self._ends = time.monotonic() + seconds
        self.num_failures = 0

    def record(self, name: str, **fields: Any) -> None:
        """Add a row to the file and print it."""
        row = {"section": self.name, "name": name, **fields}
        if row.get("ok") is False:
            self.num_failures += 1
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(line_of(row), flush=True)

    def attempt(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run ``work``, unless the section's time is over; a failure becomes a row.

        Returns:
            What it returns, ``None`` if it failed or was left out.
        """
        if time.monotonic() > self._ends:
            self.record(name, skipped="no time is left for it")
            return None
        try:
            return work(*arguments)
        except Exception as error:
            detail = "".join(traceback.format_exception(error)[-4:])
            self.record(name, ok=False, error=f"{type(error).__name__}: {error}", detail=detail)
            return None


def line_of(row: Row) -> str:
    """One row as a line of a table."""
    if "skipped" in row:
        return f"  skipped  {row['name']}: {row['skipped']}"
    if "value" not in row:
        verdict = "ok      " if row["ok"] else "FAILED  "
        return f"  {verdict} {row['name']}{_details(row)}"
    text = f"           {row['name']:<52} {row['value']:>10.4g} {row['unit']:<9}"
    if "share" in row:
        text += f" {row['share']:>6.1%} of {row['of']}"
    if "wanted" in row:
        text += f" (wanted {row['wanted']})"
    return text


def _details(row: Row) -> str:
    keys = [key for key in row if key not in ("section", "name", "ok", "detail")]
    text = "".join(f" {key}={row[key]}" for key in keys)
    return text + ("\n" + row["detail"] if "detail" in row else "")


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as text, by section: failures in full, and all that was measured."""
    for section in dict.fromkeys(row["section"] for row in rows):
        members = [row for row in rows if row["section"] == section]
        verdicts = [row for row in members if "ok" in row]
        passed = sum(row["ok"] for row in verdicts)
        yield f"{section}: {passed} of {len(verdicts)} hold" if verdicts else f"{section}:"
        for row in members:
            if not row.get("ok", False):
                yield line_of(row)
