"""Ops of one layer that need no cache: products with packed weights, norms, activations."""

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


def pack_quantized_weight(blocks: Tensor, format: str) -> Tensor:
    """Lay a weight in GGUF blocks out for `linear`, without changing a number.

    Args:
        blocks: uint8 [out_features, in_features / 32 * block_bytes], rows as GGUF files hold them.
        format: ``"Q4_0"`` (18 bytes: float16 scale, 32 codes), ``"Q4_1"`` (20 bytes: scale, min,
            codes) or ``"Q8_0"`` (34 bytes).

    Returns:
        uint8 [panels, in_features / 32, 16 * block_bytes], out_features padded to panels of 16.
    """
    return ops.pack_quantized_weight.default(blocks, format)


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
    their own scale; the products of a block are then summed as integers, exactly.

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


def add_rms_norm(residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add ``delta`` to the residual stream in place, and normalise: ``x / rms(x) * weight``.

    Args:
        residual: [T, dim], contiguous; changed when there is a delta.
        delta: [T, dim], contiguous, or ``None``.
        weight: float32 [dim], whatever the dtype of ``residual``.
        eps: added to the mean square.

    Returns:
        [T, dim], computed in float32 and rounded once.
    """
    return ops.add_rms_norm.default(residual, delta, weight, eps)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """Compute ``silu(gate) * up`` from [T, 2 * dim], contiguous, gate first.

    Returns:
        [T, dim], computed in float32 and rounded once.
    """
    return ops.silu_and_mul.default(gate_up)
