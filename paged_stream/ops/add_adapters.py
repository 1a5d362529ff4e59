"""What LoRA adapters add to a projection of a decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from paged_stream.ops.adapter import Adapter, Projection
from paged_stream.ops.library import ops


def add_adapters(
    out: Tensor,
    input: Tensor,
    adapters: Sequence[Adapter],
    row_adapters: Tensor,
    layer: int,
    projection: Projection,
) -> None:
    """Add what the adapters of its rows give to a product, in place. What a row gets does not
    depend on the rows beside it; it is summed in float32 and rounded once.

    Args:
        out: [T, out_features], contiguous: the product.
        input: [T, in_features], rows contiguous: what was multiplied.
        adapters: those of the step.
        row_adapters: int32 [T], which of them each row has; -1 for none.
        layer: of the decoder.
        projection: of the layer.
    """
    handles = [adapter.handle for adapter in adapters]
    ops.add_adapters.default(out, input, handles, row_adapters, layer, projection)
