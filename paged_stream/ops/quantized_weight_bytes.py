"""The size of packed quantised weights."""

from __future__ import annotations

from paged_stream.ops.library import ops


def quantized_weight_bytes(rows: list[int], in_features: int, formats: list[str]) -> int:
    """Size of a packed weight.

    Args:
        rows: of each of its parts.
        formats: of each.
    """
    num_bytes: int = ops.quantized_weight_bytes.default(rows, in_features, ",".join(formats))
    return num_bytes
