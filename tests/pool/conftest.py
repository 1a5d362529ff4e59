"""Pools without processes."""

from __future__ import annotations

import pytest


@pytest.fixture
def local_ray(monkeypatch):
    """Pools that are made meanwhile run their replicas in this process."""
    pytest.importorskip("ray")
    from paged_stream.pool import cluster, replica, replica_set
    from tests.pool.local_ray import LocalRay

    local = LocalRay()
    for module in (cluster, replica, replica_set):
        monkeypatch.setattr(module, "ray", local)
    return local
