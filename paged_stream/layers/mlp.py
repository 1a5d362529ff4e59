"""Feed-forward blocks: [T, hidden_size] to the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from paged_stream import ops
from paged_stream.layers.linear import Linear
from paged_stream.layers.norm import RMSNorm

_GELU_TANH = partial(F.gelu, approximate="tanh")

# By transformers' names, several of which mean the same.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
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

    def fused_with(self, norm: torch.nn.Module) -> ops.GatedMLP | None:
        """The block after ``norm`` as a single op, if there is one for it; weights are packed."""
        if not (self.gated and self.activation is F.silu and isinstance(norm, RMSNorm)):
            return None
        up, down = self.up, self.down
        weights = (up.packed_weight, up.bias, down.packed_weight, down.bias)
        return ops.GatedMLP(norm.weight, norm.eps, *weights, up.out_features // 2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.up.forward(hidden)
        if not self.gated:
            hidden = self.activation(hidden)
        elif self.activation is F.silu:
            hidden = ops.silu_and_mul(hidden)
        else:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = self.activation(gate) * up
        return self.down.forward(hidden)
