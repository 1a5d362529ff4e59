"""Many tensors in one buffer, and back."""

from __future__ import annotations

import torch

from paged_stream.worker.staging import pack, to_device, unpack

TENSORS = [
    torch.arange(7, dtype=torch.int64) << 40,
    torch.arange(3, dtype=torch.int32),
    torch.empty(0, dtype=torch.int64),
    torch.arange(15, dtype=torch.int32).view(3, 5),
    torch.tensor([1.5, -2.0], dtype=torch.float32),
    torch.tensor([9], dtype=torch.int64),
]


def test_what_is_packed_comes_out_again():
    buffer = pack(TENSORS)
    views = unpack(buffer, TENSORS)
    for view, tensor in zip(views, TENSORS, strict=True):
        assert view.dtype == tensor.dtype and torch.equal(view, tensor)
        assert view.data_ptr() % 16 == buffer.data_ptr() % 16


def test_parts_do_not_overlap():
    buffer = pack(TENSORS)
    for i in range(len(TENSORS)):
        views = unpack(buffer.clone(), TENSORS)
        views[i].fill_(3)
        others = [(v, t) for j, (v, t) in enumerate(zip(views, TENSORS, strict=True)) if j != i]
        assert all(torch.equal(view, tensor) for view, tensor in others)


def test_the_cpu_copies_nothing():
    moved = to_device(TENSORS, torch.device("cpu"))
    assert all(one is other for one, other in zip(moved, TENSORS, strict=True))
