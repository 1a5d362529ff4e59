"""How many processors this process may use, which is how many threads an engine has by default."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")


def default_num_threads() -> int:
    """As many as torch would take, but no more than this process has processors: of those that it
    may run on, and of the time on them that its control group is given."""
    count = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
    quota = cpu_quota(_CGROUPS, Path("/proc/self/cgroup").read_text())
    return count if quota is None else min(count, quota)


def cpu_quota(root: Path, membership: str) -> int | None:
    """Processors whose time a control group and those above it may use up, rounded up to a whole
    one; ``None`` without a limit.

    Args:
        root: where the file systems of control groups are mounted.
        membership: what ``/proc/self/cgroup`` says, of version 1, version 2 or both.
    """
    quotas = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts, read = (root, root / "unified"), _quota_of_version_2
        elif "cpu" in controllers.split(","):
            mounts, read = (root / "cpu", root / controllers), _quota_of_version_1
        else:
            continue
        quotas += [read(folder) for mount in mounts for folder in _ancestry(mount, path)]
    return min((math.ceil(quota) for quota in quotas if quota is not None), default=None)


def _ancestry(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a group and those above it. In a container the path may be the one outside,
    where the container's own group is the mount."""
    folder = mount / path.lstrip("/")
    yield folder
    while folder != mount and folder != folder.parent:
        folder = folder.parent
        yield folder


def _quota_of_version_1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except OSError:  # no such group, or none that has limits
        return None
    return quota / period if quota > 0 else None


def _quota_of_version_2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except OSError:
        return None
    return None if quota == "max" else int(quota) / int(period)
