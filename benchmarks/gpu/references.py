"""The tests' own batches and references for ops, which lie beside the tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "ops"))

import batches  # noqa: E402
import ops_reference as reference  # noqa: E402

__all__ = ["batches", "reference"]
