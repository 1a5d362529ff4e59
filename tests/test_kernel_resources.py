"""What the kernels take, as ``make cuda-check`` listed it, is within the limits of every GPU."""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHARED_LIMITS = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90a": 227, "sm_100": 227, "sm_120": 99}


def rows() -> list[dict[str, str]]:
    with (ROOT / "docs" / "kernel_resources.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_gpu_of_the_build_is_listed():
    gpus = re.search(r'^GPUS = "(.*)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert gpus and list(SHARED_LIMITS) == [f"sm_{gpu}" for gpu in gpus[1].split()]
    assert all(row[gpu] for row in rows() for gpu in SHARED_LIMITS)


def test_every_kernel_is_within_every_limit():
    for row in rows():
        for gpu, kilobytes in SHARED_LIMITS.items():
            assert int(row["dynamic shared memory, bytes"] or 0) <= kilobytes * 1024, row
            assert int(row[gpu]) <= 255, row
