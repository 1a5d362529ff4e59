"""Products with packed weights."""

from __future__ import annotations

from torch import Tensor

from paged_stream.ops.library import ops


def linear(
    input: Tensor,
    packed_weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    float_output: bool = False,
) -> Tensor:
    """Compute ``input W^T + bias``, accumulating in float32 in the order of in_features.

    A row's result is the same, bit for bit, whatever rows stand beside it. A quantised weight
    multiplies an input that is rounded to 15-bit integers first, each 32 elements of a row with
    their own scale; the products of the 16 or 32 elements that share a scale of the weight are then
    summed as integers, exactly.

    Args:
        input: [T, in_features], rows strided, in the weight's dtype; float32 or bfloat16 if the
            weight is quantised.
        packed_weight: from `pack_linear_weight` or `pack_quantized_weight`.
        bias: [out_features], or ``None``.
        float_output: return the float32 sums unrounded.

    Returns:
        [T, out_features] in the dtype of ``input``, or float32.
    """
    return ops.linear.default(input, packed_weight, bias, out_features, float_output)
