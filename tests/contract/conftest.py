"""Every engine of the contract, and one to compare it with: each starts once for all modules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from paged_stream import EngineConfig, LLMEngine
from tests.contract.engines import EVERY_ENGINE, SETTINGS


@pytest.fixture(scope="package", params=EVERY_ENGINE)
def implementation(request):
    if request.param.needs_ray:
        request.getfixturevalue("ray")
    return request.param


@pytest.fixture(scope="package")
def engine(implementation, folder) -> Iterator:
    with implementation.make(folder) as engine:
        yield engine


@pytest.fixture
def own_engine(implementation, folder) -> Iterator:
    """One that the test may close."""
    engine = implementation.make(folder)
    yield engine
    engine.close()


@pytest.fixture(scope="package")
def reference(folder) -> Iterator[LLMEngine]:
    """What the results of the others are compared with."""
    with LLMEngine(EngineConfig(model=str(folder), **SETTINGS)) as engine:
        yield engine


@pytest.fixture
def stream(engine) -> Iterator:
    with engine.open_stream() as stream:
        yield stream


@pytest.fixture
def twin(reference) -> Iterator:
    """A stream of the reference."""
    with reference.open_stream() as stream:
        yield stream
