"""Copies beside the steps, with a lane that does everything as late as it may."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from paged_stream.models.kv_tokens import KVTokens
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.worker import model_runner
from paged_stream.worker.copies import CacheCopies
from paged_stream.worker.kv_cache import KVCache
from paged_stream.worker.lanes import InOrder
from paged_stream.worker.parking import ParkedStore

LAYERS, SLOTS = 3, torch.tensor([5, 0, 17, 16])


class Late:
    """A lane whose work is done when somebody waits for it, and no sooner."""

    def __init__(self) -> None:
        self.queue: list[Any] = []
        self.num_done, self.is_ordered = 0, False

    def run(self, work) -> None:
        assert self.is_ordered, "what the work reads may not have been computed"
        self.queue.append(work)

    def mark(self):
        return LateMark(self, len(self.queue))

    def wait(self, mark) -> None:
        self.is_ordered = True

    def hold(self, tensor) -> None:
        pass


class LateMark:
    def __init__(self, lane, end) -> None:
        self.lane, self.end = lane, end

    def reach(self) -> None:
        while self.lane.num_done < self.end:
            self.lane.queue[self.lane.num_done]()
            self.lane.num_done += 1

    def is_reached(self) -> bool:
        return self.lane.num_done >= self.end


class Steps(InOrder):
    """Steps are done at once, when what they wait for is."""

    def wait(self, mark) -> None:
        mark.reach()


@pytest.fixture(params=["late", "at once"])
def copies(request):
    cache = KVCache(
        num_layers=LAYERS,
        num_blocks=6,
        num_kv_heads=2,
        block_size=4,
        head_dim=8,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    cache.tensor.copy_(torch.randn(cache.tensor.shape, generator=torch.Generator().manual_seed(0)))
    return CacheCopies(cache, Steps(), Late() if request.param == "late" else InOrder())


def equal(one: KVTokens, other: KVTokens) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def random_tokens(seed: int) -> KVTokens:
    generator = torch.Generator().manual_seed(seed)
    return KVTokens(*torch.randn(2, LAYERS, len(SLOTS), 2, 8, generator=generator))


def test_slots_may_be_overwritten_at_once(copies):
    expected = copies.cache.read(SLOTS)
    tokens, arrival = copies.copy_out(SLOTS)
    copies.cache.tensor.fill_(torch.nan)
    arrival.reach()
    assert equal(tokens, expected)


def test_a_layer_finds_what_was_copied_in(copies):
    tokens = random_tokens(1)
    copies.copy_in(SLOTS, tokens)
    for index, (k_cache, v_cache) in enumerate(copies.layers()):
        for cache, part in ((k_cache, tokens.key), (v_cache, tokens.value)):
            assert torch.equal(cache[SLOTS // 4, :, SLOTS % 4], part[index])
    assert list(copies.layers()) == copies.cache.layers  # once more, with nothing to wait for


def test_only_the_layers_asked_for_are_waited_for(copies):
    copies.copy_in(SLOTS, random_tokens(1))
    if isinstance(lane := copies._copies, Late):
        next(iter(copies.layers()))
        assert lane.num_done == 1


def test_settled_copies_are_all_there(copies):
    copies.copy_in(SLOTS, random_tokens(1))
    copies.copy_in(SLOTS + 1, random_tokens(2))
    copies.settle()
    assert equal(copies.cache.read(SLOTS + 1), random_tokens(2))


def test_what_was_copied_in_may_be_copied_out(copies):
    copies.copy_in(SLOTS, random_tokens(1))
    tokens, arrival = copies.copy_out(SLOTS)
    arrival.reach()
    assert equal(tokens, random_tokens(1))


def test_memory_on_the_way_is_bounded(copies):
    layer_bytes = copies.cache.read(SLOTS).nbytes // LAYERS
    copies._max_bytes_in_flight = layer_bytes
    copies.copy_out(SLOTS)
    if isinstance(lane := copies._copies, Late):
        assert len(lane.queue) - lane.num_done == 1


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_parked_tokens_are_read_when_they_have_arrived(copies, tmp_path, budget):
    store, expected = ParkedStore(budget, tmp_path), copies.cache.read(SLOTS)
    store.put(7, *copies.copy_out(SLOTS))
    copies.cache.tensor.fill_(torch.nan)
    assert equal(store.read(7), expected)
    store.drop(7)
    assert (store.host_bytes, store.disk_bytes) == (0, 0)


def answers(act, engine, path) -> list[int]:
    """What a stream says after it was parked, and ``act`` restored it and went on at once."""
    stream = engine.open_stream()
    stream.append([(7 * i * i + i) % 95 + 2 for i in range(61)])
    tokens(stream)
    stream.park()
    stream = act(stream, engine, path)
    return tokens(stream) + tokens(stream)


def tokens(stream) -> list[int]:
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    return [token for delta in stream.generate(params) for token in delta.delta_token_ids]


def fork(stream, engine, path):
    return stream.fork()


def cut(stream, engine, path):
    stream.cut(stream.position - 20, stream.position - 9)
    return stream


def save(stream, engine, path):
    stream.rewind(stream.position - 3)  # which restores it
    stream.save(path)
    return engine.load_stream(path)


def nothing(stream, engine, path):
    return stream


@pytest.mark.parametrize("act", [fork, cut, save, nothing])
@pytest.mark.parametrize("num_decode_steps", [1, 4])
def test_nothing_reads_the_cache_before_the_copies_are_there(
    make_engine, monkeypatch, tmp_path, act, num_decode_steps
):
    expected = answers(act, make_engine(num_decode_steps=num_decode_steps), tmp_path / "a")
    monkeypatch.setattr(model_runner, "make_lanes", lambda device: (Steps(), Late()))
    late = make_engine(num_decode_steps=num_decode_steps)
    assert answers(act, late, tmp_path / "b") == expected
