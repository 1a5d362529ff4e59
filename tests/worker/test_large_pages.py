"""Memory in large pages holds what any other does, and is taken as it is written."""

from __future__ import annotations

import mmap
from pathlib import Path

import psutil
import pytest
import torch

from paged_stream.layers import large_pages
from paged_stream.layers.large_pages import Arena, resident_bytes, zeros_in_large_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LARGE_PAGE = 2 << 20


def flags_at(address: int) -> list[str] | None:
    """What the kernel says of the mapping that an address lies in; ``None`` if there is none."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            begin, end = (int(word, 16) for word in words[0].split("-"))
            found = begin <= address < end
        elif found and words[0] == "VmFlags:":
            return words[1:]
    return None


@pytest.mark.skipif(not SETTING.exists(), reason="the kernel has no such pages")
def test_the_kernel_is_asked():
    tensor = zeros_in_large_pages((3, 4 << 20), torch.float32)
    assert tensor.shape == (3, 4 << 20) and tensor.is_contiguous()
    assert "hg" in flags_at(tensor.data_ptr() + tensor.nbytes // 2)


def test_small_memory_is_ordinary():
    assert zeros_in_large_pages((3, 5), torch.int8).fill_(7).sum() == 105


def test_what_an_arena_keeps_stays(monkeypatch):
    monkeypatch.setattr(large_pages, "_ARENA_BYTES", 1000)
    generator = torch.Generator().manual_seed(0)
    arena, kept, expected = Arena(), [], []
    for count in (3, 50, 1, 400, 64, 7, 2000, 16, 5):  # more than one arena, and more than that
        for dtype in (torch.bfloat16, torch.float32, torch.uint8):
            tensor = torch.randint(0, 200, (count, 2), generator=generator).to(dtype)
            kept.append(arena.keep(tensor))
            expected.append(tensor.clone())
            tensor.zero_()
    for ours, theirs in zip(kept, expected, strict=True):
        assert ours.is_contiguous() and ours.data_ptr() % 64 == 0
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_memory_is_zero_and_comes_as_it_is_written():
    tensor = zeros_in_large_pages((3, 32 << 20), torch.uint8)
    assert resident_bytes(tensor) == 0
    for row in tensor:
        row[5 << 20] = 1
    # Pages at three places: of 2 MiB each at most, of 4 KiB at least.
    assert 3 * mmap.PAGESIZE <= resident_bytes(tensor) <= 3 * LARGE_PAGE
    assert tensor.count_nonzero() == 3
    tensor.fill_(1)
    assert resident_bytes(tensor) == tensor.nbytes


def test_a_part_has_what_is_resident_of_it():
    tensor = zeros_in_large_pages((2, 32 << 20), torch.uint8)
    tensor[0] = 1
    assert [resident_bytes(row) for row in tensor] == [32 << 20, 0]
    assert resident_bytes(tensor[:0]) == 0


def test_memory_goes_back_when_the_last_view_is_gone():
    part = zeros_in_large_pages((2, 64 << 20), torch.uint8)[1].fill_(1)
    process = psutil.Process()
    before = process.memory_info().rss
    del part
    assert before - process.memory_info().rss > 60 << 20


def test_too_much_memory_is_an_error():
    with pytest.raises(MemoryError, match="refuses 9223372036854775808 bytes"):
        zeros_in_large_pages((1 << 62, 2), torch.uint8)
