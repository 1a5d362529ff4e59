"""One small local Ray for all tests of this folder, and the tiny model they run."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def ray():
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=2,
        object_store_memory=100 << 20,
        include_dashboard=False,
        log_to_driver=False,
        ignore_reinit_error=True,
    )
    yield ray
    ray.shutdown()
