"""Rows of a packed quantised weight, as a table."""

from __future__ import annotations

import torch
from torch import Tensor

from paged_stream.ops.library import ops


def embedding_rows(
    ids: Tensor, packed_weight: Tensor, in_features: int, dtype: torch.dtype
) -> Tensor:
    """The numbers that rows of a weight stand for, as llama.cpp computes them in float32.

    Args:
        ids: int64 [T], the rows.
        packed_weight: from `pack_quantized_weight`.
        in_features: numbers in a row.
        dtype: float32 or bfloat16, to which the numbers are rounded.

    Returns:
        [T, in_features].
    """
    is_bfloat16 = dtype == torch.bfloat16
    return ops.embedding_rows.default(ids, packed_weight, in_features, is_bfloat16)
