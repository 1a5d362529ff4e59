"""Host memory that the system gives as it is written, in pages of 2 MiB where it gives such on
request.

Weights and K and V are read at full speed from all over large memory; with pages of 4 KiB, looking
up where these lie takes a part of the time. Results do not depend on it, so what the system refuses
is nobody's error.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Sequence

import torch

_PAGE_BYTES = 2 << 20
_ARENA_BYTES = 64 << 20
_ALIGNMENT = 64  # bytes: a line of the processor's caches
_COUNTED_BYTES = 1 << 30  # of which the system tells the resident pages in one call


def zeros_in_large_pages(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Allocate zeros on the CPU. They take address space, and memory once they are written.

    The memory is the tensor's own: it goes back to the system as a whole when the tensor and its
    views are gone.

    Raises:
        MemoryError: the system does not give so much address space.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    spare = _PAGE_BYTES if num_bytes >= _PAGE_BYTES else 0  # to begin at a large page
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        memory = mmap.mmap(-1, max(1, num_bytes + spare), flags=flags)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"the system refuses {num_bytes} bytes of address space") from error
    if spare and hasattr(mmap, "MADV_HUGEPAGE"):  # on Linux
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without such pages
            pass
    whole = torch.frombuffer(memory, dtype=torch.uint8)  # which keeps the memory
    start = -whole.data_ptr() % _PAGE_BYTES if spare else 0
    return whole[start : start + num_bytes].view(dtype).view(*shape)


def resident_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a contiguous CPU tensor that are in memory, in whole pages as the system counts."""
    page_bytes = mmap.PAGESIZE
    begin = tensor.data_ptr() // page_bytes * page_bytes
    end = tensor.data_ptr() + tensor.nbytes
    mincore = ctypes.CDLL(None, use_errno=True).mincore
    num_pages = 0
    for start in range(begin, end, _COUNTED_BYTES):
        size = min(_COUNTED_BYTES, end - start)
        flags = (ctypes.c_ubyte * -(-size // page_bytes))()
        if mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), flags) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        num_pages += int(torch.frombuffer(flags, dtype=torch.uint8).bitwise_and_(1).sum())
    return num_pages * page_bytes


def give_back(tensor: torch.Tensor) -> None:
    """Give the memory of a contiguous CPU tensor back to the system; what it held is lost.

    Pages that it begins or ends in stay.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):  # not on Linux
        return
    page_bytes = mmap.PAGESIZE
    begin = -(-tensor.data_ptr() // page_bytes) * page_bytes
    end = (tensor.data_ptr() + tensor.nbytes) // page_bytes * page_bytes
    if begin < end:
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


class Arena:
    """Memory in large pages for tensors that come one by one and stay."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def empty(self, num_bytes: int) -> torch.Tensor:
        """Memory for a tensor, uint8 [num_bytes]."""
        size = math.ceil(num_bytes / _ALIGNMENT) * _ALIGNMENT
        if size > len(self._free):
            self._free = zeros_in_large_pages([max(size, _ARENA_BYTES)], torch.uint8)
        place, self._free = self._free[:size], self._free[size:]
        return place[:num_bytes]

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of a tensor."""
        kept = self.empty(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
        return kept.copy_(tensor)
