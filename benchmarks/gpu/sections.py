"""A section of the check while it runs: its cases, one after the other, each able to fail alone.

An error on a CUDA device may leave the whole process unable to use it. The process then ends with
`RESTART`, and another one goes on behind the step that failed. So it does if a step killed the
process.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.place import RESTART, Place
from benchmarks.gpu.rows import NAME, line_of, plan_row, read_rows, value_of, write_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is done.

    Args:
        shapes: of models to measure, by their names in `models.SHAPES`.
        heads: of attention: KV heads, and query heads of each.
        head_dim: of attention.
        streams: batch sizes of the attention kernels.
        visible: keys that each of these streams sees.
        decode_batches: batch sizes of whole decode steps, with the keys that each stream sees.
        most_streams: whose steps are timed, if the memory holds them.
        prompt: tokens of a prefill, in one chunk.
        caches: keys that a stream sees, in the comparison with recomputation.
        families: variants of tiny models, see ``tests/family_reference.py``.
        vocab: of the sampler that is timed.
        copy_bytes: of the copy that shows the bandwidth; ``matrix`` is the product's size.
        repeats: of each measurement.
    """

    shapes: tuple[str, ...]
    heads: tuple[tuple[int, int], ...]
    head_dim: int
    streams: tuple[int, ...]
    visible: int
    decode_batches: tuple[tuple[int, int], ...]
    most_streams: int
    prompt: int
    caches: tuple[int, ...]
    families: tuple[str, ...]
    vocab: int
    copy_bytes: int
    matrix: int
    repeats: int


SIZES = {
    "full": Sizes(
        shapes=("llama-2-7b", "llama-2-13b"),
        heads=((32, 1), (8, 4)),
        head_dim=128,
        streams=(1, 32, 256),
        visible=4096,
        decode_batches=((1, 4096), (32, 2048), (128, 512)),
        most_streams=256,
        prompt=8192,
        caches=(256, 512, 1024, 2048, 4096),
        families=("llama3", "qwen2", "qwen3", "gemma2", "phi3", "gptj", "mpt", "falcon_rw", "gpt2"),
        vocab=128_256,
        copy_bytes=4 << 30,
        matrix=8192,
        repeats=20,
    ),
    "quick": Sizes(
        shapes=("llama-2-7b",),
        heads=((32, 1), (8, 4)),
        head_dim=128,
        streams=(1, 32),
        visible=4096,
        decode_batches=((1, 4096), (32, 2048)),
        most_streams=32,
        prompt=4096,
        caches=(256, 4096),
        families=("llama3", "gemma2"),
        vocab=128_256,
        copy_bytes=1 << 30,
        matrix=8192,
        repeats=7,
    ),
    # So small that a processor goes through all of it in seconds: to test the check itself.
    "tiny": Sizes(
        shapes=("tiny",),
        heads=((4, 1), (2, 4)),
        head_dim=32,
        streams=(1, 2),
        visible=40,
        decode_batches=((1, 40), (3, 24)),
        most_streams=4,
        prompt=48,
        caches=(16, 32),
        families=("llama3",),
        vocab=500,
        copy_bytes=1 << 16,
        matrix=64,
        repeats=2,
    ),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A part of a section that needs no other part of it.

    Args:
        name: no other case of the section has it.
        run: does it, and records rows.
    """

    name: str
    run: Callable[[Section], object]


class Section:
    """One section while it runs: its device, its time and its file of rows.

    Args:
        after: what was reached before; that step and all before it are not done again.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        sizes: Sizes,
        seconds: float,
        folder: Path,
        after: Place | None = None,
    ) -> None:
        self.name, self.device, self.sizes = name, device, sizes
        self.folder, self.path = folder, folder / NAME
        self._ends = time.monotonic() + seconds
        self._after = after if after is not None and after.section == name else None
        self._place = Place(section=name, case=-1, case_name="", step=0, name="")
        self._is_in_step = False

    def run(self, cases: Sequence[Case]) -> None:
        """Run the cases that are left. Whatever is not reached stays in the file as planned."""
        if self._after is None:
            for case in cases:
                write_row(self.path, plan_row(self.name, case.name))
        first = 0 if self._after is None else self._after.case
        if self._after is not None and self._after.step == 0:
            first += 1  # it failed before its first step, and would do so again
        for index, case in enumerate(cases[first:], first):
            self._place = Place(
                section=self.name, case=index, case_name=case.name, step=0, name=case.name
            )
            self._place.write(self.folder)
            if self._has_time(case.name):
                self._guard(case.name, case.run, self)
        Place.forget(self.folder)

    def attempt(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run a step of a case, unless the section's time is over; a failure becomes a row.

        Steps are not made of steps. They come in the same order whenever a case runs.

        Returns:
            What it returns, ``None`` if it failed or was left out.
        """
        assert not self._is_in_step, f"{name} is a step of {self._place.name}"
        self._place = replace(self._place, step=self._place.step + 1, name=name)
        after = self._after
        if after and after.case == self._place.case and after.step >= self._place.step:
            return None
        self._place.write(self.folder)
        if not self._has_time(name):
            return None
        self._is_in_step = True
        try:
            return self._guard(name, work, *arguments)
        finally:
            self._is_in_step = False

    def record(self, name: str, **fields: Any) -> None:
        """Add a row to the file and print it."""
        row = {"section": self.name, "case": self._place.case_name, "name": name, **fields}
        write_row(self.path, row)
        print(line_of(row), flush=True)

    def skip(self, name: str, why: str) -> None:
        """Record that something was left out."""
        self.record(name, value=None, skipped=why)

    def ceiling(self, name: str) -> float | None:
        """What the section of that name measured before; ``None`` if it did not."""
        return value_of(read_rows(self.path), "ceilings", name)

    def seconds_left(self) -> float:
        return self._ends - time.monotonic()

    def _has_time(self, name: str) -> bool:
        if self.seconds_left() >= 0:
            return True
        self.skip(name, "no time is left for it")
        return False

    def _guard(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return work(*arguments)
        except Exception as error:
            detail = "".join(traceback.format_exception(error)[-4:])
            self.record(name, ok=False, error=f"{type(error).__name__}: {error}", detail=detail)
        # What the error held is free from here on.
        if not self._is_usable():
            sys.exit(RESTART)
        gc.collect()
        torch.cuda.empty_cache()
        return None

    def _is_usable(self) -> bool:
        """Whether the device still does what this process asks for."""
        try:
            torch.cuda.synchronize(self.device)
            return bool(torch.ones(1, device=self.device).item())
        except Exception:
            return False
