"""Loads the op library, and says what it is made of."""

from __future__ import annotations

import torch

try:
    from paged_stream import _C  # noqa: F401  (loading it registers the ops)
except ImportError as error:
    raise ImportError(
        "the op library paged_stream._C is missing or was built for another torch; build it with "
        "`pip install --no-build-isolation -e .` in the repository root"
    ) from error

from paged_stream.ops import fake_kernels  # noqa: E402, F401  (for tracing; they need the ops)

ops = torch.ops.paged_stream


def has_cuda() -> bool:
    """Whether the op library was built with its CUDA kernels."""
    name = "paged_stream::paged_attention"
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
