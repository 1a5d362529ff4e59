"""Memory in large pages holds what any other does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from paged_stream.layers import large_pages
from paged_stream.layers.large_pages import Arena, empty_in_large_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_at(address: int) -> list[str]:
    """What the kernel says of the mapping that an address lies in."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            begin, end = (int(word, 16) for word in words[0].split("-"))
            found = begin <= address < end
        elif found and words[0] == "VmFlags:":
            return words[1:]
    raise AssertionError("no such mapping")


@pytest.mark.skipif(not SETTING.exists(), reason="the kernel has no such pages")
def test_the_kernel_is_asked():
    tensor = empty_in_large_pages((3, 4 << 20), torch.float32)
    assert tensor.shape == (3, 4 << 20) and tensor.is_contiguous()
    assert "hg" in flags_at(tensor.data_ptr() + tensor.nbytes // 2)


def test_small_memory_is_ordinary():
    assert empty_in_large_pages((3, 5), torch.int8).fill_(7).sum() == 105


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
