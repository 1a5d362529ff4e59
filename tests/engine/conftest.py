"""Asynchronous engines that are shut down when the test is over."""

from __future__ import annotations

import asyncio

import pytest

from paged_stream import AsyncLLMEngine


@pytest.fixture
def make(make_engine):
    engines = []

    def make(*, max_unread=16, **settings):
        engines.append(AsyncLLMEngine(make_engine(**settings).config, max_unread=max_unread))
        return engines[-1]

    yield make
    for engine in engines:
        asyncio.run(engine.shutdown())
