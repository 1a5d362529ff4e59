"""What replicas take of a Ray cluster's processors and GPUs."""

from __future__ import annotations

from paged_stream.config import EngineConfig
from paged_stream.pool.replica import ray


def replica_options(config: EngineConfig) -> dict[str, float]:
    """Ray's options for the process of a replica. The ranks of a model that is shared reserve
    theirs themselves."""
    if config.tensor_parallel_size > 1:
        return {"num_cpus": 0}
    gpus = ray.cluster_resources().get("GPU", 0)
    if str(config.device).startswith("cuda") or (config.device == "auto" and gpus):
        return {"num_cpus": 0, "num_gpus": 1}
    return {"num_cpus": config.num_threads or 1}


def check_room(config: EngineConfig, num_replicas: int) -> None:
    """Refuse more replicas than the cluster has room for.

    Raises:
        ValueError: says how many processors or GPUs they need, and how many there are.
    """
    has, ranks = ray.cluster_resources(), config.tensor_parallel_size
    needs = replica_options(config)
    if ranks > 1:
        if has.get("GPU", 0) and config.device != "cpu":
            needs = {"num_gpus": ranks}
        else:
            needs = {"num_cpus": ranks * (config.num_threads or 1)}
    for name, amount in needs.items():
        kind = name.removeprefix("num_").removesuffix("s").upper()
        if has.get(kind, 0) < amount * num_replicas:
            raise ValueError(
                f"num_replicas={num_replicas} needs {amount * num_replicas:g} {kind}s, and the Ray "
                f"cluster has {has.get(kind, 0):g}"
            )
