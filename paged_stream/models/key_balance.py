"""Evens out the channels of keys, so that one scale per row does for all; scores stay the same.

Families that add a bias to keys tend to have a few channels that are many times as large as the
rest. Keys are divided by powers of two there, and queries multiplied by them, by none so large that
something would round: scores are the same to the bit. Saved streams hold such keys: who changes the
factors must raise the version of stream files.
"""

from __future__ import annotations

import torch

from paged_stream.layers.blocks import Blocks
from paged_stream.layers.norm import LayerNorm, RMSNorm
from paged_stream.models.decoder import Decoder
from paged_stream.models.decoder_layer import Attention, DecoderLayer


def balance_keys(decoder: Decoder) -> None:
    """Change the projections of queries and keys, before they are packed."""
    for layer, rotary in zip(decoder.layers, decoder.layer_rotary, strict=True):
        assert isinstance(layer, DecoderLayer)
        attention, norm = layer.attention, layer.attention_norm
        # A norm or a clip behind the projection would undo or see the factors.
        if attention.qkv.bias is None or attention.key_norm or attention.clip is not None:
            continue
        if not isinstance(norm, RMSNorm | LayerNorm):
            continue
        power = _key_power(attention, norm)
        rotary_dim = 2 * len(decoder.rotaries[rotary].inv_freq)
        factors = _factors(power, rotary_dim, attention.interleaved)
        _scale(attention, _exact(attention, factors, rotary_dim))


def _key_power(attention: Attention, norm: RMSNorm | LayerNorm) -> torch.Tensor:
    """Mean square to expect of each channel of the keys, [kv_heads, head_dim].

    What a norm puts out is taken as independent numbers of its weights' size around its biases.
    """
    qkv = attention.qkv
    assert qkv.bias is not None
    first, num_heads, _ = attention.split
    keys = slice(first * attention.head_dim, (first + num_heads) * attention.head_dim)
    rows, mean = qkv.rows(keys), qkv.bias[keys].float()
    weight = rows.values() if isinstance(rows, Blocks) else rows.float()
    if isinstance(norm, LayerNorm) and norm.bias is not None:
        mean = mean + weight @ norm.bias.float()
    spread = weight.square() @ norm.weight.float().square()
    return (mean.square() + spread).view(-1, attention.head_dim)


def _factors(power: torch.Tensor, rotary_dim: int, interleaved: bool) -> torch.Tensor:
    """Powers of two [kv_heads, head_dim], one for both channels of a pair that rotates."""
    power = power.clone()
    pairs = _pairs(power, rotary_dim, interleaved)
    pairs.copy_(pairs.mean(-1, keepdim=True))
    typical = power.median(dim=1, keepdim=True).values
    ratio = torch.where(typical > 0, power / typical, 1.0).clamp(min=1.0)
    return torch.exp2((ratio.log2() / 2).round())


def _pairs(channels: torch.Tensor, rotary_dim: int, interleaved: bool) -> torch.Tensor:
    """A view of the channels [kv_heads, head_dim] that rotate, [kv_heads, rotary_dim / 2, 2]."""
    rotating = channels[:, :rotary_dim]
    if interleaved:
        return rotating.unflatten(1, (rotary_dim // 2, 2))
    return rotating.unflatten(1, (2, rotary_dim // 2)).transpose(1, 2)


def _exact(attention: Attention, factors: torch.Tensor, rotary_dim: int) -> torch.Tensor:
    """Factors that are small enough to be undone: float16, which the scales of quantised blocks
    are, has few numbers that are as small as their quotients may be."""
    first, num_heads, _ = attention.split
    keys = slice(first * attention.head_dim, (first + num_heads) * attention.head_dim)
    factors = factors.clone()
    for parameter in _parameters(attention, keys):
        values = parameter.reshape(*factors.shape, -1)
        while True:
            divisors = factors[..., None].to(values.dtype)
            rounds = (values / divisors * divisors != values).any(dim=-1) & (factors > 1)
            if not rounds.any():
                break
            factors[rounds] /= 2
            pairs = _pairs(factors, rotary_dim, attention.interleaved)
            pairs.copy_(pairs.amin(-1, keepdim=True))
    return factors


def _parameters(attention: Attention, rows: slice) -> list[torch.Tensor]:
    """Views of what the factors go into: bias, and weight or the scales of its blocks."""
    weight = attention.qkv.rows(rows)
    assert attention.qkv.bias is not None
    return [attention.qkv.bias[rows], weight.scales() if isinstance(weight, Blocks) else weight]


def _scale(attention: Attention, factors: torch.Tensor) -> None:
    """Divide the keys by ``factors`` and multiply the queries of their groups."""
    num_heads, num_kv_heads, _ = attention.split
    query_factors = factors.repeat_interleave(num_heads // num_kv_heads, dim=0)
    query_size, kv_size = num_heads * attention.head_dim, num_kv_heads * attention.head_dim
    for parameter in _parameters(attention, slice(0, query_size)):
        parameter *= _for_rows(query_factors, parameter)
    for parameter in _parameters(attention, slice(query_size, query_size + kv_size)):
        parameter /= _for_rows(factors, parameter)
    values = torch.ones_like(factors)
    attention.qkv.row_factors = torch.cat([query_factors, 1 / factors, values]).flatten()


def _for_rows(factors: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    return factors.view(-1, *[1] * (parameter.dim() - 1)).to(parameter.dtype)
