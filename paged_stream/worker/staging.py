"""Carries a step's many small tensors to the device in one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_ALIGNMENT = 16  # bytes, so that a part may be read as any dtype and with wide loads


def to_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """The host's ``tensors``, contiguous, on ``device``: themselves on the CPU, else parts of one
    buffer.

    The copy starts from pinned memory, which torch's allocator keeps until the copy has been done,
    so the host may go on, and free or fill what it has, at once.
    """
    if device.type == "cpu":
        return list(tensors)
    return unpack(pack(tensors, pin_memory=True).to(device, non_blocking=True), tensors)


def pack(tensors: Sequence[torch.Tensor], *, pin_memory: bool = False) -> torch.Tensor:
    """Put tensors into one uint8 buffer on the host."""
    size = sum(_padded(tensor) for tensor in tensors)
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=pin_memory)
    for part, tensor in zip(unpack(buffer, tensors), tensors, strict=True):
        part.copy_(tensor)
    return buffer


def unpack(buffer: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views of a buffer, with the shapes and dtypes of the tensors that were packed."""
    views, start = [], 0
    for tensor in like:
        part = buffer[start : start + tensor.nbytes]
        views.append(part.view(tensor.dtype).view(tensor.shape))
        start += _padded(tensor)
    return views


def _padded(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
