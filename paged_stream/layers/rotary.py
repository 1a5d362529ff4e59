"""Rotary position tables; a key is rotated once, at its absolute position, however large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from paged_stream import ops


class RotaryTables(NamedTuple):
    """One step's angles, float32 [T, rotary_dim], cosines then sines.

    Args:
        rotary: at each token's position.
        sink_rotary: at its position towards the sinks; ``None`` when both agree for all tokens.
    """

    rotary: torch.Tensor
    sink_rotary: torch.Tensor | None


class RotaryEmbedding:
    """Cosines and sines of ``position * inv_freq``, computed per step rather than stored.

    Args:
        inv_freq: rotary_dim / 2 frequencies in radians per token, as float32 values; none leave
            queries and keys as they are.
        attention_scaling: factor on cosines and sines.
    """

    def __init__(
        self, inv_freq: Sequence[float], attention_scaling: float, device: torch.device
    ) -> None:
        # float32 angles are wrong by 0.24 rad at position 4 million; float64 holds for any stream.
        self.inv_freq = torch.tensor(inv_freq, dtype=torch.float64, device=device)
        self.attention_scaling = attention_scaling

    def tables(
        self, positions: torch.Tensor, sink_positions: torch.Tensor | None = None
    ) -> RotaryTables:
        """Compute the tables of a step from int64 [T] positions."""
        if sink_positions is None or not len(self.inv_freq):
            return RotaryTables(self._table(positions), None)
        return RotaryTables(self._table(positions), self._table(sink_positions))

    def turn(self, distance: int, count: int) -> torch.Tensor:
        """Table that turns ``count`` keys, rotated already, on by ``distance`` positions."""
        angles = self.inv_freq * distance
        return torch.cat((angles.cos(), angles.sin())).to(torch.float32).repeat(count, 1)

    def _table(self, positions: torch.Tensor) -> torch.Tensor:
        return ops.rotary_table(positions, self.inv_freq, self.attention_scaling)
