"""Feed-forward blocks: [T, hidden_size] to the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from paged_stream import ops
from paged_stream.layers.linear import Linear
from paged_stream.layers.low_rank import StepAdapters
from paged_stream.layers.norm import RMSNorm

# torch shares an elementwise op of 32,768 elements or more out among threads. What is left when a
# thread has done its whole vectors, of 128 elements at most, it rounds otherwise than these.
_PIECE = 32_768 - 128
_VECTORS = 128


def by_pieces(into: Callable[..., torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    """Apply an elementwise op, ``into(input, out=...)``, to ``hidden`` [T, width] so that the bits
    of a row depend neither on the rows beside it nor on the number of threads."""
    if hidden.device.type != "cpu":
        return into(hidden, out=torch.empty_like(hidden))
    hidden = hidden.contiguous()
    result = torch.empty_like(hidden)
    whole = hidden.shape[1] % _VECTORS == 0
    for source, target in [(hidden, result)] if whole else zip(hidden, result, strict=True):
        pieces = (tensor.view(-1).split(_PIECE) for tensor in (source, target))
        for piece, out in zip(*pieces, strict=True):
            into(piece, out=out)
    return result


_SILU = partial(by_pieces, torch.ops.aten.silu.out)
_GELU = partial(by_pieces, torch.ops.aten.gelu.out)
_GELU_TANH = partial(by_pieces, partial(torch.ops.aten.gelu.out, approximate="tanh"))

# By transformers' names, several of which mean the same.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": _SILU,
    "swish": _SILU,
    "gelu": _GELU,
    "gelu_new": _GELU_TANH,
    "gelu_fast": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "relu": F.relu,
}


class MLP(torch.nn.Module):
    """``down(activation(gate(x)) * up(x))`` with gate and up in one product, if it is gated, else
    ``down(activation(up(x)))``."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: str,
        gated: bool,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gated = gated
        up_size = 2 * intermediate_size if gated else intermediate_size
        self.up = Linear(hidden_size, up_size, bias=bias, dtype=dtype, device=device)
        self.down = Linear(intermediate_size, hidden_size, bias=bias, dtype=dtype, device=device)

    def fused_with(self, norm: torch.nn.Module, dtype: torch.dtype) -> ops.GatedMLP | None:
        """What follows ``norm`` as a single op, if there is one for it; weights are packed."""
        if not (self.gated and self.activation is _SILU and isinstance(norm, RMSNorm)):
            return None
        up, down = self.up, self.down
        weights = ops.MLPWeights(
            norm.weight, up.packed_weight, up.bias, down.packed_weight, down.bias
        )
        return ops.GatedMLP(weights, eps=norm.eps, dtype=dtype)

    def forward(self, hidden: torch.Tensor, adapters: StepAdapters | None = None) -> torch.Tensor:
        hidden = self.up.adapted(hidden, adapters)
        if not self.gated:
            hidden = self.activation(hidden)
        elif self.activation is _SILU:
            hidden = ops.silu_and_mul(hidden)
        else:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = self.activation(gate) * up
        return self.down.adapted(hidden, adapters)
