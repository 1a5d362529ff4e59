"""What is left of a device for the cache, and the step that is run to find out."""

from __future__ import annotations

import pytest
import torch

from paged_stream import EngineConfig
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config
from paged_stream.scheduler.sink_window import SinkWindow
from paged_stream.worker import memory
from paged_stream.worker.memory import MemoryUse, explain_shortage, largest_step, plan_cache
from paged_stream.worker.worker import Worker

GIB = 1 << 30
USE = MemoryUse(total=80 * GIB, in_use=15 * GIB, weights=13 * GIB, activations=2 * GIB)
WINDOW = SinkWindow(4, 24)


def test_what_is_left():
    assert USE.left_for_cache(0.9) == 55 * GIB
    assert USE.left_for_cache(0.2) == -GIB


def config_of(folder, **settings) -> EngineConfig:
    return EngineConfig(model=str(folder), block_size=8, dtype="float32", **settings)


def test_the_cache_takes_all_that_is_left(folder):
    model_config = load_config(resolve_model(str(folder)))
    config = config_of(folder, max_num_seqs=2, max_num_batched_tokens=16)
    plan = plan_cache(config, model_config, torch.float32, WINDOW, GIB, USE)
    assert plan.num_bytes <= GIB < plan.num_bytes + plan.block_bytes
    # On the CPU it takes no more than its streams can use.
    assert plan_cache(config, model_config, torch.float32, WINDOW, GIB).num_bytes < GIB


def test_too_little_names_the_numbers(folder):
    model_config = load_config(resolve_model(str(folder)))
    config = config_of(folder, gpu_memory_utilization=0.2)
    with pytest.raises(ValueError) as error:
        plan_cache(config, model_config, torch.float32, WINDOW, USE.left_for_cache(0.2), USE)
    for part in (
        "gpu_memory_utilization=0.2 leaves -1073741824 bytes",
        "80.00 GiB, 13.00 GiB hold weights, 2.00 GiB are taken otherwise",
        "the largest step needs 2.00 GiB",
        "lower max_num_batched_tokens or lower window_size",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("window_size", [24, 100])
def test_the_largest_step_runs_on_a_single_block(folder, window_size):
    """It is as large as any step can be, and its sequences all sample."""
    config = config_of(
        folder, window_size=window_size, max_num_seqs=5, max_num_batched_tokens=33, device="cpu"
    )
    files = resolve_model(str(folder))
    model_config, window = load_config(files), SinkWindow(4, window_size)
    step = largest_step(config, model_config, window, 33)
    assert [len(s.token_ids) for s in step.sequences] == [7, 7, 7, 6, 6]
    worker = Worker(config, files, model_config, window)
    runner = worker._make_runner(config, num_blocks=1)
    assert len(runner.execute(step).token_ids) == 5


def test_a_lack_of_memory_is_explained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 70 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 78 * GIB)
    message = "ran out of memory while computing a step: 1.00 GiB of 80.00 GiB are free.*70.00.*78"
    with (
        pytest.raises(torch.OutOfMemoryError, match=message),
        explain_shortage(torch.device("cuda"), "computing a step", "do less"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("limit", "left"), [(1 << 20, (1 << 20) - 700 + 50), (600, 0), ("max", None)]
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_less_than_its_machine(tmp_path, monkeypatch, version, limit, left):
    free = memory.available_memory()
    _, *names, prefix = memory._CGROUPS[2 - version]
    monkeypatch.setattr(memory, "_CGROUPS", [(tmp_path, *names, prefix)])
    assert memory.available_memory() > free // 2  # there is no group at all
    for name, content in zip(names, (limit, 700), strict=True):
        (tmp_path / name).write_text(f"{content}\n")
    stat = f"anon 600\n{prefix}inactive_file 20\n{prefix}active_file 30\n"
    (tmp_path / "memory.stat").write_text(stat)
    if left is None:
        assert memory.available_memory() > free // 2
    else:
        assert memory.available_memory() == left
