"""A text of the tiny model's alphabet, and what its engines are started with."""

from __future__ import annotations

import random

import pytest


@pytest.fixture(scope="session")
def text():
    rng = random.Random(0)
    return "".join(rng.choice("abcdefgh ijklmn, opqrst.") for _ in range(150))


@pytest.fixture
def engine(folder):
    return {"model": str(folder), "dtype": "float32", "kv_cache_memory_bytes": 4 << 20}


@pytest.fixture
def text_file(tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_text(text)
    return path
