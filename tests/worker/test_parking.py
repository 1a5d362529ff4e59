"""Parked tokens come back as they were, from memory and from disk."""

from __future__ import annotations

import pytest
import torch
from safetensors import SafetensorError

from paged_stream.models.kv_tokens import KVTokens
from paged_stream.worker.parking import ParkedStore


def tokens(count: int, seed: int = 0) -> KVTokens:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, count, 2, 8)
    return KVTokens(*(torch.randn(shape, generator=generator).bfloat16() for _ in range(2)))


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_rows_of_int8_come_back_to_the_byte(tmp_path, budget):
    rows = KVTokens(*torch.randint(-128, 128, (2, 2, 4, 2, 12)).to(torch.int8))
    store = ParkedStore(budget, tmp_path)
    store.put(1, rows)
    assert store.host_bytes + store.disk_bytes == 2 * 2 * 4 * 2 * 12
    assert same(store.pop(1), rows)


def same(one: KVTokens, other: KVTokens) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


SIZE = tokens(4).nbytes


def test_the_first_ones_go_to_disk(tmp_path):
    store = ParkedStore(2 * SIZE, tmp_path)
    for key in range(5):
        store.put(key, tokens(4, key))
    assert [store.location(key) for key in range(5)] == ["disk"] * 3 + ["host"] * 2
    assert (store.host_bytes, store.disk_bytes) == (2 * SIZE, 3 * SIZE)
    assert len(list(tmp_path.glob("*/*"))) == 3
    assert same(store.read(1), tokens(4, 1))  # looking takes nothing away
    for key in (3, 1, 0):
        assert same(store.pop(key), tokens(4, key))
    store.drop(2)
    store.drop(4)
    assert (store.host_bytes, store.disk_bytes) == (0, 0)
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("budget", [0, 1, SIZE - 1])
def test_a_small_budget_uses_the_disk_alone(tmp_path, budget):
    store = ParkedStore(budget, tmp_path / "new" / "folder")
    store.put(7, tokens(4))
    assert (store.location(7), store.host_bytes, store.disk_bytes) == ("disk", 0, SIZE)
    assert same(store.pop(7), tokens(4))


@pytest.mark.parametrize("budget", [0, 10])
def test_no_tokens_at_all(tmp_path, budget):
    store = ParkedStore(budget, tmp_path)
    store.put(1, tokens(0))
    store.put(2, tokens(4))
    assert same(store.pop(1), tokens(0))
    assert same(store.pop(2), tokens(4))


def test_a_key_can_come_back(tmp_path):
    store = ParkedStore(0, tmp_path)
    for seed in range(3):
        store.put(1, tokens(4, seed))
        assert same(store.pop(1), tokens(4, seed))


def test_its_folder_goes_with_the_store(tmp_path):
    store = ParkedStore(0, tmp_path)
    store.put(1, tokens(4))
    assert list(tmp_path.iterdir())
    del store
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError, SafetensorError])
def test_a_full_disk_is_no_disaster(tmp_path, monkeypatch, caplog, error):
    store = ParkedStore(SIZE, tmp_path)

    def fail(content, path):
        path.write_bytes(b"half")
        raise error("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("paged_stream.worker.parking.save_file", fail)
        for key in range(3):
            store.put(key, tokens(4, key))
    assert "no space left" in caplog.text
    assert (store.host_bytes, store.disk_bytes) == (3 * SIZE, 0)
    assert not list(tmp_path.glob("*/*"))
    store.put(3, tokens(4, 3))  # there is room again
    assert store.host_bytes == SIZE
    for key in range(4):
        assert same(store.pop(key), tokens(4, key))
