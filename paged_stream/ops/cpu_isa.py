"""The instruction set that the CPU kernels are compiled for."""

from __future__ import annotations

from paged_stream.ops.library import ops


def cpu_isa() -> str:
    """The instruction set of the CPU kernels in use: "avx512bf16", "avx512vnni", "avx512",
    "avxvnni", "avx2" or "generic"."""
    return ops.cpu_isa.default()


def set_cpu_isa(name: str) -> None:
    """Use the kernels of another instruction set; for tests and benchmarks.

    Args:
        name: what `cpu_isa` may return.

    Raises:
        RuntimeError: this machine does not have it.
    """
    ops.set_cpu_isa.default(name)
