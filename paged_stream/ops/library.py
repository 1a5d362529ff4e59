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


def cpu_isa() -> str:
    """The instruction set of the CPU kernels in use: "avx512vnni", "avx512", "avxvnni", "avx2" or
    "generic"."""
    return ops.cpu_isa.default()


def set_cpu_isa(name: str) -> None:
    """Use the kernels of another instruction set; for tests and benchmarks.

    Raises:
        RuntimeError: this machine does not have it.
    """
    ops.set_cpu_isa.default(name)
