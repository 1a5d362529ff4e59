"""An op and its file bear one name, on every device and in Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPS = re.findall(r'm\.def\(\s*"(\w+)\(', (ROOT / "csrc" / "registration.cpp").read_text())
FILES = {
    "cpu": [*(ROOT / "csrc" / "cpu" / "ops").glob("*.cpp")],
    "cuda": [*(ROOT / "csrc" / "cuda").glob("*.cu")],
    "python": [*(ROOT / "paged_stream" / "ops").glob("*.py")],
}
USES = {"cpu": r'm\.impl\("(\w+)"', "cuda": r'm\.impl\("(\w+)"', "python": r"ops\.(\w+)\.default"}


def homes(place: str) -> dict[str, str]:
    """The file of each op that has one there."""
    return {
        op: path.stem for path in FILES[place] for op in re.findall(USES[place], path.read_text())
    }


@pytest.mark.parametrize("place", FILES)
def test_a_file_bears_the_name_of_its_op(place):
    for op, stem in homes(place).items():
        # What makes an op's handles, and what frees or sets them, stands beside it.
        assert op in (stem, f"lay_out_{stem}", f"free_{stem}", f"set_{stem}"), f"{op} in {stem}"


def test_every_op_has_a_file():
    assert set(homes("cpu")) == set(homes("python")) == set(OPS)
    assert set(homes("cuda")) < set(OPS)
