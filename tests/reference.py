"""Two oracles for streaming over Llama-architecture models, independent of the engine.

`dense_logits` is the whole sequence at once under DESIGN.md section 2: an explicit visibility set
per query, true distances in the window, clamped distances to the sink tokens. `published_logits`
is the published algorithm, token by token: raw keys in the cache, positions in the cache, eviction
after the forward pass. They share weights and nothing else, so their agreement is the proof of the
identity, and the engine is compared with both. Nothing here imports the engine.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

TokenIds = Sequence[int] | torch.Tensor
# From a layer's number, rotated keys and values [kv_heads, T, head_dim] to what is read of them.
Store = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def tiny_llama(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A small random Llama in float32 whose logits depend visibly on what attention sees.

    Weights are large enough for attention scores to spread by about 2, norms and biases are not
    at their neutral values, and there is no end-of-sequence token. ``overrides`` go to
    `LlamaConfig`.
    """
    settings: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | overrides))).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            elif "q_proj" in name or "k_proj" in name:
                parameter.copy_(1.4 * parameter.shape[1] ** -0.5 * noise)
            else:
                parameter.copy_(parameter.shape[1] ** -0.5 * noise)
    return model


def random_ids(model: LlamaForCausalLM, length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()


# Shared plumbing: weights, and the parts of the layer that no cache policy touches


def _in_dtype(model: LlamaForCausalLM, dtype: torch.dtype | None) -> LlamaForCausalLM:
    if dtype is None or dtype == model.dtype:
        return model
    return nn.Module.to(copy.deepcopy(model), dtype)


def _norm(module: LlamaRMSNorm, x: torch.Tensor) -> torch.Tensor:
    # The HF module rounds to float32 inside, whatever the model's dtype: too coarse for a proof.
    rms = torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)
    return module.weight * (x * rms)


def _rotate(x: torch.Tensor, positions: torch.Tensor, model: LlamaForCausalLM) -> torch.Tensor:
    """Rotates ``x`` [heads, T, head_dim] to ``positions`` [T]; angles in float64."""
    rotary = model.model.rotary_emb
    angles = positions.to(torch.float64)[:, None] * rotary.inv_freq.to(torch.float64)
    scaling = rotary.attention_scaling
    cos, sin = (angles.cos() * scaling).to(x.dtype), (angles.sin() * scaling).to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _project(attention: LlamaAttention, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Unrotated q [heads, T, d] and k, v [kv_heads, T, d] of ``x`` [T, hidden]."""
    parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
    return tuple(p.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1) for p in parts)


def _logits(model: LlamaForCausalLM, x: torch.Tensor) -> torch.Tensor:
    return model.lm_head(_norm(model.model.norm, x))


# Oracle 1: the whole sequence at once


@torch.no_grad()
def dense_logits(
    model: LlamaForCausalLM,
    token_ids: TokenIds,
    num_sink_tokens: int,
    window_size: int | None,
    *,
    dtype: torch.dtype | None = torch.float64,
    clamp_sinks: bool = True,
    window_floors: torch.Tensor | None = None,
    store: Store | None = None,
    query_chunk: int = 256,
) -> torch.Tensor:
    """Logits [T, vocab] of ``token_ids``, every query seeing its sink tokens and its window.

    Args:
        window_size: ``None`` is full causal attention.
        dtype: what all arithmetic is done in; ``None`` is the model's own. Angles are float64.
        clamp_sinks: ``False`` keeps true distances to the sinks: a different, worse algorithm.
        window_floors: int64 [T], for each query the first position behind the sinks whose key there
            is; ``None`` is 0 for all.
        store: what the cache makes of K and V; ``None`` keeps them as they are.
        query_chunk: queries attended to at a time; bounds memory, changes nothing.
    """
    model = _in_dtype(model, dtype)
    ids = torch.as_tensor(token_ids, dtype=torch.long)
    positions = torch.arange(len(ids))
    floors = torch.zeros_like(positions) if window_floors is None else window_floors
    x = model.model.embed_tokens(ids)
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        q, k, v = _project(attention, _norm(layer.input_layernorm, x))
        sink_positions = positions
        if window_size is not None and clamp_sinks:
            gap = torch.maximum(positions - window_size + 1, floors) - num_sink_tokens
            sink_positions = positions - gap.clamp(min=0)
        window_q, sink_q = _rotate(q, positions, model), _rotate(q, sink_positions, model)
        k = _rotate(k, positions, model)
        if store is not None:
            k, v = store(index, k, v)
        groups = attention.num_key_value_groups
        k, v = (part.repeat_interleave(groups, dim=0) for part in (k, v))

        outputs = []
        for chunk in positions.split(query_chunk):
            visible = _visible(chunk, positions, num_sink_tokens, window_size, floors[chunk])
            scores = torch.where(
                positions < num_sink_tokens,  # decided per key
                sink_q[:, chunk] @ k.mT,
                window_q[:, chunk] @ k.mT,
            )
            scores = (scores * attention.head_dim**-0.5).masked_fill(~visible, -torch.inf)
            outputs.append(scores.softmax(dim=-1) @ v)
        mixed = torch.cat(outputs, dim=1).transpose(0, 1).flatten(1)  # [T, heads * head_dim]
        x = x + attention.o_proj(mixed)
        x = x + layer.mlp(_norm(layer.post_attention_layernorm, x))
    return _logits(model, x)


def _visible(
    queries: torch.Tensor,
    keys: torch.Tensor,
    num_sink_tokens: int,
    window_size: int | None,
    floors: torch.Tensor,
) -> torch.Tensor:
    """bool [queries, keys]: j < S, or p - W < j and j >= F, and never after the query."""
    p, j = queries[:, None], keys[None, :]
    if window_size is None:
        return j <= p
    in_window = (p - window_size < j) & (floors[:, None] <= j)
    return (j <= p) & ((j < num_sink_tokens) | in_window)


# Oracle 2: the published algorithm, token by token


class PublishedStream:
    """One stream of the published algorithm: S + R raw keys are kept, a step sees S + R + 1.

    ``window_size`` counts the query's own token, so the published "S+R" is ``R = window_size - 1``.
    ``position`` is that of the next token as the engine counts, by which `cut` names tokens.
    """

    def __init__(self, model: LlamaForCausalLM, num_sink_tokens: int, window_size: int) -> None:
        self.model = model
        self.start_size = num_sink_tokens
        self.recent_size = window_size - 1
        self.position = 0
        self.keys: list[torch.Tensor | None] = [None] * len(model.model.layers)  # never rotated
        self.values: list[torch.Tensor | None] = [None] * len(model.model.layers)

    @torch.no_grad()
    def step(self, token_id: int) -> torch.Tensor:
        """Feeds one token; returns the logits [vocab] for the next."""
        x = self.model.model.embed_tokens(torch.tensor([token_id]))
        for index, layer in enumerate(self.model.model.layers):
            x = x + self._attend(index, layer.self_attn, _norm(layer.input_layernorm, x))
            x = x + layer.mlp(_norm(layer.post_attention_layernorm, x))
        self._evict()
        self.position += 1
        return _logits(self.model, x)[0]

    def cut(self, start: int, end: int) -> None:
        """Removes positions [start, end) of the window; what is older there moves up by as many."""
        shift = self._length() - self.position  # from a position in the window to its place
        assert self.start_size <= start + shift <= end + shift <= self._length()
        self._remove(start + shift, end + shift)

    def rewind(self, num_tokens: int) -> None:
        """Drops the newest tokens. Back among the sinks, position and place are one again."""
        length = self._length() - num_tokens
        self._remove(length, self._length())
        self.position = length if length < self.start_size else self.position - num_tokens

    def _attend(self, index: int, attention: LlamaAttention, x: torch.Tensor) -> torch.Tensor:
        q, k, v = _project(attention, x)
        keys, values = self.keys[index], self.values[index]
        if keys is not None and values is not None:
            k, v = torch.cat((keys, k), dim=1), torch.cat((values, v), dim=1)
        self.keys[index], self.values[index] = k, v

        length = k.shape[1]
        q = _rotate(q, torch.tensor([length - 1]), self.model)
        k = _rotate(k, torch.arange(length), self.model)
        outputs = []
        for head in range(q.shape[0]):
            kv_head = head // attention.num_key_value_groups
            weights = torch.softmax(k[kv_head] @ q[head, 0] * attention.scaling, dim=0)
            outputs.append(weights @ v[kv_head])
        return attention.o_proj(torch.cat(outputs)[None])

    def _length(self) -> int:
        return 0 if self.keys[0] is None else self.keys[0].shape[1]

    def _evict(self) -> None:
        if self._length() > self.start_size + self.recent_size:
            self._remove(self.start_size, self._length() - self.recent_size)

    def _remove(self, start: int, end: int) -> None:
        """Removes the places [start, end) of the cache."""
        assert 0 <= start <= end <= self._length()
        for cache in (self.keys, self.values):
            for index, x in enumerate(cache):
                if x is not None:
                    cache[index] = torch.cat((x[:, :start], x[:, end:]), dim=1)


def published_logits(
    model: LlamaForCausalLM,
    token_ids: TokenIds,
    num_sink_tokens: int,
    window_size: int,
    *,
    dtype: torch.dtype | None = torch.float64,
) -> torch.Tensor:
    """Logits [T, vocab] of the published algorithm, fed one token at a time."""
    stream = PublishedStream(_in_dtype(model, dtype), num_sink_tokens, window_size)
    return torch.stack([stream.step(int(token)) for token in token_ids])


def published_greedy(
    model: LlamaForCausalLM,
    prompt: TokenIds,
    num_tokens: int,
    num_sink_tokens: int,
    window_size: int,
    *,
    dtype: torch.dtype | None = torch.float64,
) -> list[int]:
    """The ``num_tokens`` most likely tokens after ``prompt``, by the published algorithm."""
    stream = PublishedStream(_in_dtype(model, dtype), num_sink_tokens, window_size)
    for token in prompt:
        logits = stream.step(int(token))
    generated = [int(logits.argmax())]
    while len(generated) < num_tokens:
        generated.append(int(stream.step(generated[-1]).argmax()))
    return generated


def token_logprobs(logits: torch.Tensor, token_ids: TokenIds) -> torch.Tensor:
    """Log-probability [T - 1] of each token after the first, given the logits [T, vocab]."""
    ids = torch.as_tensor(token_ids, dtype=torch.long)
    return F.log_softmax(logits[:-1], dim=-1).gather(1, ids[1:, None])[:, 0]
