"""A service with one engine, or with a pool, and an engine here that answers as it does."""

from __future__ import annotations

import pytest

from paged_stream import LLM
from tests.serve.services import SETTINGS, Client, serve_engine, serve_pool


@pytest.fixture(scope="module", params=["engine", pytest.param("pool", marks=pytest.mark.ray)])
def client(request, folder):
    if request.param == "pool":
        request.getfixturevalue("ray")
    with (serve_pool if request.param == "pool" else serve_engine)(folder) as base:
        yield Client(base)


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(str(folder), **SETTINGS)
