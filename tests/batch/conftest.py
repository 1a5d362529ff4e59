"""Ray on this machine, for the tests of this folder together."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="package")
def cluster():
    """Ray with two processors."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_raylet_start_wait_time_s", "150")  # a busy machine takes its time
        patch.delenv("RAY_ADDRESS", raising=False)
        if ray.is_initialized():
            ray.shutdown()
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=200 << 20,
            include_dashboard=False,
            log_to_driver=False,
        )
        yield
        ray.shutdown()
