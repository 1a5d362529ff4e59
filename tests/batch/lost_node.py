"""A batch on a cluster of two nodes, of which one goes while its engine commits its first part."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from unittest import mock

import ray
from ray.cluster_utils import Cluster

from paged_stream.batch import shard_run
from paged_stream.batch.run import run_batch
from paged_stream.batch.shard_worker import ShardWorker
from tests.batch.test_run_batch import batch


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def let_one_node_go(node_id: str, begun: Path, gone: Path) -> None:
    """The engine on a node leaves ``begun`` instead of its first part, and waits for the end. Those
    on others wait until that node is ``gone``."""

    class Waiting(ShardWorker):
        def _commit(self, *args, **how):
            if ray.get_runtime_context().get_node_id() == node_id:
                begun.touch()
                threading.Event().wait()
            wait_for(gone)
            return super()._commit(*args, **how)

    mock.patch.object(shard_run, "ShardWorker", Waiting).start()


def run(folder: str, source: Path, output: Path, marks: Path) -> None:
    """Each node has room for one engine. Leaves ``done``: because a node was killed, Ray ends this
    process with a code of its own."""
    begun, gone = marks / "begun", marks / "gone"
    head = {"num_cpus": 2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    let_one_node_go(node.node_id, begun, gone)

    def remove() -> None:
        wait_for(begun)
        cluster.remove_node(node, allow_graceful=False)
        gone.touch()

    threading.Thread(target=remove, daemon=True).start()
    run_batch(batch(folder, output, source, num_replicas=2))
    (marks / "done").touch()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    model, *paths = sys.argv[1:]
    run(model, *map(Path, paths))
