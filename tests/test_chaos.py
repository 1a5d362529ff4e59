"""A short run of `benchmarks.chaos`; its own runs take an hour."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("world", ["caller", "thread", pytest.param("pool", marks=pytest.mark.ray)])
def test_every_survivor_says_what_it_should(world, tmp_path):
    command = [sys.executable, "-m", "benchmarks.chaos", "--worlds", world, "--streams", "12"]
    command += ["--operations", "300", "--results", str(tmp_path)]
    root = Path(__file__).parent.parent
    result = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert result.returncode == 0, result.stdout + result.stderr
    row = json.loads((tmp_path / "chaos.jsonl").read_text())
    assert row["operations"] >= 300
    assert row["streams_compared"] > 0
    assert row["mismatches"] == row["unexpected_errors"] == 0
