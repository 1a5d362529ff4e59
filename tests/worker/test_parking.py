"""Parked tokens come back as they were, from memory and from disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from paged_stream.models.kv_tokens import KVTokens
from paged_stream.scheduler.output import ParkedLostError
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
    assert same(taken(store, 1), rows)


def taken(store: ParkedStore, key: int) -> KVTokens:
    found = store.read(key)
    store.drop(key)
    return found


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
        assert same(taken(store, key), tokens(4, key))
    store.drop(2)
    store.drop(4)
    assert (store.host_bytes, store.disk_bytes) == (0, 0)
    assert not list(tmp_path.glob("*/*"))


@pytest.mark.parametrize("budget", [0, 1, SIZE - 1])
def test_a_small_budget_uses_the_disk_alone(tmp_path, budget):
    store = ParkedStore(budget, tmp_path / "new" / "folder")
    store.put(7, tokens(4))
    assert (store.location(7), store.host_bytes, store.disk_bytes) == ("disk", 0, SIZE)
    assert same(taken(store, 7), tokens(4))


@pytest.mark.parametrize("budget", [0, 10])
def test_no_tokens_at_all(tmp_path, budget):
    store = ParkedStore(budget, tmp_path)
    store.put(1, tokens(0))
    store.put(2, tokens(4))
    assert same(taken(store, 1), tokens(0))
    assert same(taken(store, 2), tokens(4))


def test_a_key_can_come_back(tmp_path):
    store = ParkedStore(0, tmp_path)
    for seed in range(3):
        store.put(1, tokens(4, seed))
        assert same(taken(store, 1), tokens(4, seed))


def test_its_folder_goes_with_the_store(tmp_path):
    store = ParkedStore(0, tmp_path)
    store.put(1, tokens(4))
    assert list(tmp_path.iterdir())
    del store
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_no_disaster(tmp_path, monkeypatch, caplog):
    store = ParkedStore(SIZE, tmp_path)

    def fail(descriptor, pieces):
        os.write(descriptor, b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("paged_stream.worker.parking.write_all", fail)
        for key in range(3):
            store.put(key, tokens(4, key))
    assert caplog.text.count("no space left") == 1  # not once for each stream
    assert (store.host_bytes, store.disk_bytes) == (3 * SIZE, 0)
    assert not list(tmp_path.glob("*/*"))
    store.put(3, tokens(4, 3))  # there is room again
    assert store.host_bytes == SIZE
    for key in range(4):
        assert same(taken(store, key), tokens(4, key))


def test_a_folder_that_was_removed_is_no_disaster(tmp_path):
    store = ParkedStore(0, tmp_path)
    store.put(1, tokens(4, 1))
    shutil.rmtree(next(tmp_path.iterdir()))
    store.put(2, tokens(4, 2))
    with pytest.raises(ParkedLostError, match=f"{tmp_path}/.*/1.safetensors: No such file"):
        store.read(1)
    assert store.location(2) == "host"
    assert same(taken(store, 2), tokens(4, 2))
    store.drop(1)
    assert (store.host_bytes, store.disk_bytes) == (0, 0)


def truncate(path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def alter(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def take_anothers_place(path) -> None:
    shutil.copy(path.with_name("2.safetensors"), path)


def become_a_fifo(path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_folder(path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage, reason",
    [
        (os.unlink, "No such file"),
        (truncate, "ends within value"),
        (alter, "value does not have the checksum"),
        (take_anothers_place, "another header than was written"),
        (become_a_fifo, "no regular file"),
        (become_a_folder, "no regular file"),
    ],
)
def test_a_file_that_is_not_as_it_was(tmp_path, damage, reason):
    store = ParkedStore(0, tmp_path)
    for key in (1, 2):
        store.put(key, tokens(4, key))
    damage(next(tmp_path.glob("*/1.safetensors")))
    with pytest.raises(ParkedLostError, match=f"1.safetensors: .*{reason}"):
        store.read(1)
    assert same(taken(store, 2), tokens(4, 2))
    store.drop(1)
    assert (store.host_bytes, store.disk_bytes) == (0, 0)
    assert not [path for path in tmp_path.glob("*/*") if not path.is_dir()]


KILLED = """
import sys, time, torch
from pathlib import Path
from paged_stream.models.kv_tokens import KVTokens
from paged_stream.worker.parking import ParkedStore
store = ParkedStore(0, Path(sys.argv[1]))
store.put(1, KVTokens(*torch.zeros(2, 2, 4, 2, 8)))
print("parked", flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "parked\n"
        (left,) = tmp_path.iterdir()
        ours = ParkedStore(0, tmp_path)
        ours.put(1, tokens(4))
        assert (left / "1.safetensors").exists()  # its process lives
        process.send_signal(signal.SIGKILL)
    assert (left / "1.safetensors").exists()
    third = ParkedStore(0, tmp_path)
    third.put(1, tokens(4, 3))
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 2
    assert same(ours.read(1), tokens(4))
