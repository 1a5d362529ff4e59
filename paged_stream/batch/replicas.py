"""How the machines of a cluster are shared among the engines of a batch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paged_stream.config import EngineConfig

# Left of a replica's processors to the tasks that read and write.
_READING = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """The engines of a batch.

    Args:
        num_replicas: how many.
        num_cpus: processors that Ray reserves for each.
        num_gpus: GPUs that Ray reserves for each.
        num_threads: threads that each computes with.
    """

    num_replicas: int
    num_cpus: float
    num_gpus: float
    num_threads: int

    @staticmethod
    def fit(wanted: int | None, nodes: Sequence[Mapping[str, float]], device: str) -> Replicas:
        """Share the nodes' processors or GPUs among replicas.

        Args:
            wanted: replicas; ``None`` is one per GPU, or one per node without GPUs.
            nodes: resources of each node.
            device: as in `EngineConfig`.
        """
        gpus = 0 if device == "cpu" else int(sum(node.get("GPU", 0) for node in nodes))
        if gpus:
            # One thread, since the GPU computes.
            return Replicas(num_replicas=wanted or gpus, num_cpus=1, num_gpus=1, num_threads=1)
        cpus = [node["CPU"] for node in nodes if node.get("CPU", 0) >= 1] or [1.0]
        num_replicas = wanted or len(cpus)
        share = _largest_share(cpus, num_replicas)
        return Replicas(
            num_replicas=num_replicas,
            num_cpus=round((1 - _READING) * share, 4),
            num_gpus=0,
            num_threads=max(1, int(share)),
        )

    def have_room(self, free: Mapping[str, float]) -> bool:
        """Whether free resources of a cluster are enough for one of them at least."""
        return all(free.get(name, 0) >= count for name, count in self._needs.items())

    @property
    def _needs(self) -> dict[str, float]:
        return {"CPU": self.num_cpus} | ({"GPU": self.num_gpus} if self.num_gpus else {})

    def waiting(self, free: Mapping[str, float], whole: Mapping[str, float]) -> str:
        """What keeps replicas from having a place, in words.

        Args:
            free: resources of the cluster that nobody has.
            whole: all of its resources.
        """
        needs = self._needs
        each = " and ".join(f"{count:g} {name}" for name, count in needs.items())
        has = " and ".join(f"{free.get(n, 0):.3g} of {whole.get(n, 0):g} {n}" for n in needs)
        return f"waiting for {self.num_replicas} engines of {each} each, {has} are free"

    def map_batches(
        self,
        ray: Any,
        dataset: Any,
        worker: type[Any],
        settings: Mapping[str, Any],
        *,
        batch_size: int,
        batches_ahead: int,
    ) -> Any:
        """A lazy dataset of what workers make of the batches of another.

        Args:
            worker: the class of the actors, with a coroutine ``__call__``.
            settings: keyword arguments of its constructor.
            batch_size: rows of a batch.
            batches_ahead: batches that a worker has at a time.
        """
        return dataset.map_batches(
            worker,
            fn_constructor_kwargs=dict(settings),
            batch_size=batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=self.num_replicas,
                max_tasks_in_flight_per_actor=batches_ahead,
                max_concurrent_calls_per_actor=batches_ahead,
            ),
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
        )


def share_cluster(ray: Any, engine: EngineConfig, num_replicas: int | None) -> Replicas:
    """Share the cluster among engines; ``num_threads`` is as the user has set it."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    replicas = Replicas.fit(num_replicas, nodes, str(engine.device))
    return replace(replicas, num_threads=engine.num_threads or replicas.num_threads)


def share_machine(engine: EngineConfig, num_replicas: int | None) -> Replicas:
    """Share what this machine has, as `share_cluster` would if Ray were started here."""
    import torch

    node = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    replicas = Replicas.fit(num_replicas, [node], str(engine.device))
    return replace(replicas, num_threads=engine.num_threads or replicas.num_threads)


def _largest_share(cpus: Sequence[float], num_replicas: int) -> float:
    """Most processors that each replica can have, on one node."""
    for share in range(int(max(cpus)), 0, -1):
        if sum(int(count // share) for count in cpus) >= num_replicas:
            return float(share)
    return sum(cpus) / num_replicas  # less than one each
