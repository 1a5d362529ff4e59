"""A text of the tiny model's alphabet."""

from __future__ import annotations

import pytest


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the sea was calm, and so it stayed. " * 4)
    return path
