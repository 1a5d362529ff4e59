"""Projection. Its weight is allocated and filled by loading, or comes in quantised blocks, and is
packed once for the CPU; on CUDA it stays as it is, for cuBLAS."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from paged_stream import ops
from paged_stream.layers.large_pages import Arena

BLOCK_SIZE = 32  # numbers that share a scale
BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}  # formats that ops.linear multiplies by


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


class Linear(torch.nn.Module):
    """``x W^T + b``; a row's result does not depend on the rows beside it once packed.

    Args:
        weight: share this one instead of allocating.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        weight: torch.nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.out_features = out_features
        if weight is None:
            weight = empty_parameter(out_features, in_features, dtype=dtype, device=device)
        self.weight: torch.nn.Parameter | None = weight
        self.bias = empty_parameter(out_features, dtype=dtype, device=device) if bias else None
        self.block_format: str | None = None
        self.register_buffer("blocks", None)
        self.register_buffer("packed_weight", None)

    def set_blocks(self, blocks: torch.Tensor, block_format: str) -> None:
        """Take the weight as quantised blocks and let go of the plain one.

        Args:
            blocks: uint8 [out_features, in_features / 32 * BLOCK_BYTES[block_format]].
        """
        self.blocks, self.block_format, self.weight = blocks, block_format, None

    def block_scales(self) -> torch.Tensor:
        """A view of the scale of each block, and of its min if it has one: float16 [out_features,
        blocks, 1 or 2]."""
        assert self.blocks is not None and self.block_format is not None
        num_bytes = BLOCK_BYTES[self.block_format]
        blocks = self.blocks.unflatten(1, (-1, num_bytes))
        scales = blocks[:, :, : 4 if self.block_format == "Q4_1" else 2]
        return scales.view(torch.float16)

    def float_rows(self, rows: slice) -> torch.Tensor:
        """Some rows of the weight, before it is packed, as float32."""
        if self.block_format is None:
            assert self.weight is not None, "packed already"
            return self.weight[rows].float()
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType[self.block_format]
        return torch.from_numpy(dequantize(self.blocks[rows].numpy(), kind))

    def pack(self, arena: Arena) -> None:
        """Lay the weight out for the CPU kernels, in the arena, and let go of it as it came."""
        if self.block_format is not None:
            packed = ops.pack_quantized_weight(self.blocks, self.block_format)
        else:
            assert self.weight is not None, "packed already"
            packed = ops.pack_linear_weight(self.weight)
        self.packed_weight = arena.keep(packed)
        self.weight = None
        self.register_buffer("blocks", None)

    def forward(self, hidden: torch.Tensor, *, float_output: bool = False) -> torch.Tensor:
        """Map [T, in_features] to [T, out_features], in float32 if ``float_output``."""
        if self.weight is None:
            return ops.linear(
                hidden, self.packed_weight, self.bias, self.out_features, float_output
            )
        if float_output and hidden.is_cuda and hidden.dtype != torch.float32:
            result = torch.mm(hidden, self.weight.t(), out_dtype=torch.float32)  # not rounded
            return result if self.bias is None else result.add_(self.bias)
        result = F.linear(hidden, self.weight, self.bias)
        return result.float() if float_output else result
