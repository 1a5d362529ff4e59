from __future__ import annotations

import os

import pytest
import torch

from paged_stream.system import processor_quota
from paged_stream.system.processor_quota import cpu_quota, default_num_threads


@pytest.fixture
def torch_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _limit(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")


@pytest.mark.parametrize(
    ("limit", "processors"),
    [("max 100000", None), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1)],
)
def test_quota_of_version_2_is_rounded_up(tmp_path, limit, processors):
    _limit(tmp_path / "user/job", cpu_max=limit)
    assert cpu_quota(tmp_path, "0::/user/job\n") == processors


@pytest.mark.parametrize(("quota", "processors"), [("-1", None), ("250000", 3), ("50000", 1)])
def test_quota_of_version_1_is_rounded_up(tmp_path, quota, processors):
    folder = tmp_path / "cpu,cpuacct" / "docker"
    _limit(folder, cpu_cfs_quota_us=quota, cpu_cfs_period_us="100000")
    membership = "5:memory:/docker\n4:cpu,cpuacct:/docker\n3:cpuset:/docker\n"
    assert cpu_quota(tmp_path, membership) == processors


def test_the_least_quota_of_a_group_and_those_above_it_counts(tmp_path):
    _limit(tmp_path, cpu_max="900000 100000")
    _limit(tmp_path / "slice", cpu_max="300000 100000")
    _limit(tmp_path / "slice/job", cpu_max="600000 100000")
    assert cpu_quota(tmp_path, "0::/slice/job") == 3
    assert cpu_quota(tmp_path, "0::/other") == 9


def test_a_container_may_see_its_group_at_the_mount_alone(tmp_path):
    _limit(tmp_path / "cpu", cpu_cfs_quota_us="200000", cpu_cfs_period_us="100000")
    assert cpu_quota(tmp_path, "4:cpu,cpuacct:/docker/0123\n0::/\n") == 2


def test_quotas_of_both_versions_side_by_side(tmp_path):
    _limit(tmp_path / "unified/job", cpu_max="300000 100000")
    _limit(tmp_path / "cpu/job", cpu_cfs_quota_us="400000", cpu_cfs_period_us="100000")
    assert cpu_quota(tmp_path, "1:cpu:/job\n0::/job\n") == 3


def test_no_groups(tmp_path):
    assert cpu_quota(tmp_path, "") is None
    assert cpu_quota(tmp_path, "1:cpu:/\n0::/\n") is None


def test_default_is_the_least_of_torch_affinity_and_quota(monkeypatch, torch_threads):
    monkeypatch.setattr(processor_quota, "cpu_quota", lambda *_: 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    torch_threads(8)
    assert default_num_threads() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 7})
    assert default_num_threads() == 2
    torch_threads(1)
    assert default_num_threads() == 1
