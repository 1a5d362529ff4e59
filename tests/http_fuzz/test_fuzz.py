"""Requests that no client should send: an answer in the shape of the others, and nothing else."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")

from tests.http_fuzz.fuzz import fuzz
from tests.serve.services import serve_engine


@pytest.mark.slow
def test_malformed_requests(folder, tmp_path):
    """More of them: ``python -m tests.http_fuzz``."""
    with serve_engine(folder, request_seconds=2, max_streams=50, state_dir=tmp_path) as base:
        found = fuzz(base, range(500))
    assert found.faults == []
    assert found.statuses[200] and found.statuses[400] and found.statuses[404]
