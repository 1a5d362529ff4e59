"""Moves one boundary of the attention kernels by one, and expects that each gate sees it.

The gates are the batches of `batches.EDGES` in this folder's tests and in ``benchmarks.gpu``, whose
check of a device runs here with the emulator as its device.

A copy of the sources is compiled once, in which every boundary has an offset: 1 for the one that
the environment variable ``MOVED_BOUNDARY`` names by its number, 0 for all others.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import patch

import pytest
import torch

from benchmarks.gpu import op_checks
from benchmarks.gpu.sections import Section
from tests.cuda_emulator import emulator as emulated
from tests.cuda_emulator.emulator import Emulator, EmulatorError
from tests.cuda_emulator.test_attention import attend, check_edges

F32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8
# Dtypes of queries and of the cache, by the kernels that a boundary belongs to.
MMA, QUANTIZED, FLOAT = (BF16, None), (BF16, INT8), (F32, None)
TENSOR_CORES, ALL = [MMA, QUANTIZED], [MMA, QUANTIZED, FLOAT]
# The boundaries by files of csrc/cuda: what is wrong once one is moved, for which kinds, and the
# text that is there exactly once, with a sign where the offset is added or subtracted.
BOUNDARIES: dict[str, dict[str, tuple]] = {
    "attention_tile.h": {
        "a row's own key is hidden": (ALL, "return key < end{-} && key >="),
        "a row sees its next key": (ALL, "return key < end{+} && key >="),
        "a row's oldest key is hidden": (ALL, "return key < end && key{-} >= ("),
        "a row's window begins later": (ALL, "v.window_begin = num_sinks{+} + "),
        "a row's window begins earlier": (ALL, "v.window_begin = num_sinks{-} + "),
        "a row's sinks begin later": (ALL, "(sink_start < 0 ? 0 : sink_start{+});"),
        "a tile lacks its last sink": (ALL, "(sink_end{-} - t.sink_begin);"),
        "a tile lacks its oldest window key": (ALL, "sink_end : window_start{+};"),
        "a tile lacks the key after the sinks": (ALL, "sink_end{+} : window_start;"),
        "a tile lacks its newest key": (ALL, "(end{-} - t.window_begin);"),
        "a window key is looked up as a sink": (ALL, "if (key < num_sinks{+}) {"),
        "window keys are one slot further": (ALL, "first_offset{+} + key - num_sinks;"),
        "a ring's block is looked up as a sink's": (ALL, "if (block < num_sink_columns{+})"),
        "the ring begins one column later": (ALL, "(ring_start{+} + block - num"),
        "a token begins one row earlier": (ALL, "chunk_position + (first_row + row{+})"),
        "a tile lacks its last row": (ALL, "rows_left : max_rows{-};"),
    },
    "attention_kernels.cuh": {
        "a split lacks its first key": (ALL, "in(split, num_splits, tile.num_keys){+},"),
        "a split lacks its last key": (ALL, "in(split + 1, num_splits, tile.num_keys){-},"),
        "the last split is not merged": (ALL, "unroll 4\n      for (int i = 0; i < num_splits{-};"),
        "a chunk lacks its first key": (ALL, "(blockIdx.y), 0{+}, tile.num_keys,"),
        "a chunk lacks its last key": (ALL, "(blockIdx.y), 0, tile.num_keys{-},"),
        "tiles begin one row later": (ALL, "first_of(sequence)) * Attention::kRows{+};"),
        "a first tile is another chunk's last": (ALL, "(first_of(middle) <= place{-}"),
    },
    "key_stream.cuh": {
        "the last key is not copied": (ALL, "thread_index() < end_{-};"),
        "a step of one key is left out": (ALL, "(end_ - begin_{-} + Keys - 1) / Keys;"),
        "a quantised row lacks its last byte": ([QUANTIZED], "in_.row_bytes{-} - at;"),
    },
    "attention_scores.cuh": {
        "keys end one key earlier": (ALL, "return key < end{-} && visible"),
    },
    "attention_mma.cuh": {
        "all rows see one key earlier": (TENSOR_CORES, "num_rows - 1).window_begin{-})"),
        "all rows see one key later": (TENSOR_CORES, "(tile.visible_keys(0).end{+})"),
        "all rows see the next split's key": ([MMA], "all_see_to_ = end_{+};"),
        "a window key meets the sink query": (TENSOR_CORES, "lane_ / 4 < num_sinks{+};"),
        "a warp's only sink meets no query": (TENSOR_CORES, "to_sinks = num_sinks{-} > 0;"),
        "a warp's only window key meets no query": (
            *(TENSOR_CORES, "(num_sinks >= kWarpKeys{-})"),
        ),
        "a tile's last row is not written": (
            *(TENSOR_CORES, "if (row(half){+} >= tile.num_rows) continue;"),
        ),
    },
    "attention_float.cuh": {
        "a window key meets the sink query in float32": (*([FLOAT], "key < tile_.num_sinks{+} ?"),),
        "a tile's last row is not computed": (
            *([FLOAT], "if (row(r){+} >= tile_.num_rows) return;\n    const int key"),
        ),
    },
}
NAMES = [name for boundaries in BOUNDARIES.values() for name in boundaries]
MOVED = """#include <cstdlib>
inline const char* const wanted_boundary = std::getenv("MOVED_BOUNDARY");
inline const int moved_boundary = wanted_boundary == nullptr ? -1 : std::atoi(wanted_boundary);
inline int moved(int boundary) { return boundary == moved_boundary; }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The emulator of a copy of the sources, in which boundaries can be moved."""
    folder = tmp_path_factory.mktemp("moved")
    kernels = folder / "csrc"
    shutil.copytree(emulated.ROOT / "csrc", kernels)
    for file, boundaries in BOUNDARIES.items():
        path = kernels / "cuda" / file
        path.write_text(with_offsets(path.read_text(), boundaries))
    (folder / "moved.h").write_text(MOVED)
    names = ("attention", "driver", "emulator", "fiber")
    # Without the sanitizers that it can do without, which takes a third of the time.
    flags = ["-fsanitize=address", "-DPAGED_STREAM_FEW_KINDS", f"-include{folder / 'moved.h'}"]
    return emulated.build(kernels, names, flags, folder)


def with_offsets(text: str, boundaries: dict[str, tuple]) -> str:
    """A source whose boundaries can be moved."""
    places = []
    for name, (_, marked) in boundaries.items():
        before, sign, after = re.split(r"{([+-])}", marked)
        assert text.count(before + after) == 1
        at = text.index(before + after) + len(before)
        places.append((at, f" {sign} moved({NAMES.index(name)})"))
    for at, offset in sorted(places, reverse=True):
        text = text[:at] + offset + text[at:]
    return text


class Verdicts:
    """What `op_checks` needs of a section: the first failure is raised."""

    device = torch.device("cpu")

    def attempt(self, name: str, work: Callable[[], None]) -> None:
        work()

    def record(self, name: str, *, ok: bool, **fields: object) -> None:
        assert ok, (name, fields)


def check_for_gpu(device: Emulator, dtype: torch.dtype, cache_dtype: torch.dtype | None) -> None:
    """``gpu_check``'s batches with a boundary of every kind, run by the emulator."""
    fake = SimpleNamespace(paged_attention=partial(attend, device))
    with patch.object(op_checks, "ops", fake):
        op_checks.check_edges(cast(Section, Verdicts()), dtype, cache_dtype)


GATES = {"tests": check_edges, "gpu_check": check_for_gpu}


@pytest.mark.cuda_check
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_boundaries_are_where_they_belong(gate, program):
    device = Emulator(program)
    for kind in ALL:
        gate(device, *kind)
    device.close()


@pytest.mark.cuda_check
@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.parametrize("name", NAMES)
def test_a_boundary_that_is_moved_is_seen(name, gate, program, monkeypatch):
    monkeypatch.setenv("MOVED_BOUNDARY", str(NAMES.index(name)))
    device = Emulator(program)
    for kind in next(found[name][0] for found in BOUNDARIES.values() if name in found):
        with pytest.raises((AssertionError, EmulatorError)):
            gate(device, *kind)
    device.close()
