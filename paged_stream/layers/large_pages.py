"""Host memory in pages of 2 MiB, where the system gives such on request.

Weights and K and V are read at full speed from all over large memory; with pages of 4 KiB, looking
up where these lie takes a part of the time. Results do not depend on it, so what the system refuses
is nobody's error.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Sequence

import torch

_PAGE_BYTES = 2 << 20
_ARENA_BYTES = 64 << 20  # of which a page at either end may be of the small kind
_ALIGNMENT = 64  # bytes: a line of the processor's caches


def empty_in_large_pages(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """As `torch.empty` on the CPU; the pages are chosen when they are written first."""
    tensor = torch.empty(shape, dtype=dtype)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)  # on Linux
    begin = -(-tensor.data_ptr() // _PAGE_BYTES) * _PAGE_BYTES
    end = (tensor.data_ptr() + tensor.nbytes) // _PAGE_BYTES * _PAGE_BYTES
    if advice is not None and begin < end:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(advice))
    return tensor


class Arena:
    """Memory in large pages for tensors that come one by one and stay."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of a tensor."""
        size = math.ceil(tensor.nbytes / _ALIGNMENT) * _ALIGNMENT
        if size > len(self._free):
            self._free = empty_in_large_pages([max(size, _ARENA_BYTES)], torch.uint8)
        place, self._free = self._free[:size], self._free[size:]
        kept = place[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        return kept.copy_(tensor)
