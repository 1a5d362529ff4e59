"""Packing weights for `linear`."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def pack_linear_weight(weight: Tensor) -> Tensor:
    """Lay a weight out for `linear`.

    Args:
        weight: [out_features, in_features], float32 or bfloat16; in_features is even for the
            latter.

    Returns:
        [ceil(out_features / 16), in_features / step, 16, step], where ``step`` elements make 4
        bytes; rows beyond out_features are zero.
    """
    return ops.pack_linear_weight.default(weight)
