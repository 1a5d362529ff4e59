"""A short run of the fuzzer.

``python -m tests.model_files_fuzz.fuzz FIRST LAST`` makes the cases of other seeds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_altered_files_load_or_are_refused_in_a_line():
    command = [sys.executable, "-m", "tests.model_files_fuzz.fuzz", "0", "60"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "60 cases: " in result.stdout and ", 0 faults" in result.stdout
