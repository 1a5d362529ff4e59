"""An oracle for streaming over many model families that runs transformers' own modules.

`published_logits` is the published StreamingLLM algorithm token by token: a cache of raw keys,
rotated at every read by their place in the cache, evicted after the forward pass. The whole model,
residuals, norms, masks, scales, soft caps and ALiBi included, is transformers' own forward pass: it
is only handed a cache (`RawKeyCache`) that holds as many tokens as the stream has visible, so all
that the model derives from the length of its cache is in cache coordinates. Nothing is written per
family, except that GPT-J rotates tensor by tensor. Nothing here imports the engine.

Precision: transformers rounds inside norms, softmax and angles to float32, whatever the model's
dtype, so even in float64 the logits are good to about 1e-6 times their size.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TokenIds = Sequence[int] | torch.Tensor


def _rope(rope_type: str, theta: float = 10000.0, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": theta, **parameters}


_COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_LLAMA_LIKE = _COMMON | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_LLAMA = _LLAMA_LIKE | {"model_type": "llama", "rms_norm_eps": 1e-5}
_MISTRAL = _LLAMA_LIKE | {"model_type": "mistral", "rms_norm_eps": 1e-5}
_QWEN2 = _LLAMA_LIKE | {
    "model_type": "qwen2",
    "num_hidden_layers": 4,
    "rope_parameters": _rope("default", 1e6),
    "sliding_window": 9,
    "max_window_layers": 2,
}
_PHI3 = _LLAMA_LIKE | {"model_type": "phi3", "rms_norm_eps": 1e-5}
_STABLELM = _LLAMA_LIKE | {
    "model_type": "stablelm",
    "rope_parameters": _rope("default", partial_rotary_factor=0.25),
}
_GEMMA = _LLAMA_LIKE | {
    "num_hidden_layers": 4,
    "hidden_size": 48,
    "head_dim": 16,
    "sliding_window": 9,
    "query_pre_attn_scalar": 24,  # as Gemma-2 27B: not head_dim
    "tie_word_embeddings": True,
}
_GPT_NEOX = _COMMON | {
    "model_type": "gpt_neox",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
# With ALiBi, 4 heads make every slope and every slope times position below 256 exact in bfloat16,
# which is what transformers rounds Falcon's to: rounding is no part of what is compared here.
_FALCON = _COMMON | {
    "model_type": "falcon",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
_MPT = _COMMON | {
    "model_type": "mpt",
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 3,
    "max_seq_len": 512,
    "tie_word_embeddings": True,
}


# Settings of each family's config class, named by "model_type"
VARIANTS: dict[str, dict[str, Any]] = {
    "llama2": _LLAMA | {"num_key_value_heads": 4},
    "llama3": _LLAMA
    | {
        "rope_parameters": _rope(
            "llama3",
            500000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        )
    },
    "llama_linear": _LLAMA | {"rope_parameters": _rope("linear", factor=2.0)},
    "llama_yarn": _LLAMA
    | {"rope_parameters": _rope("yarn", factor=8.0, original_max_position_embeddings=64)},
    # A trained length of 32, because the frequencies change only beyond it
    "llama_dynamic": _LLAMA
    | {"rope_parameters": _rope("dynamic", factor=2.0), "max_position_embeddings": 32},
    "mistral": _MISTRAL | {"sliding_window": 9},
    "mistral_wide": _MISTRAL | {"sliding_window": None, "hidden_size": 48, "head_dim": 16},
    "qwen2": _QWEN2 | {"use_sliding_window": False, "tie_word_embeddings": True},
    "qwen2_sliding": _QWEN2 | {"use_sliding_window": True},
    "qwen3": _LLAMA_LIKE
    | {
        "model_type": "qwen3",
        "hidden_size": 48,
        "head_dim": 16,
        "rope_parameters": _rope("default", 1e6),
        "tie_word_embeddings": True,
    },
    "smollm3": _LLAMA_LIKE
    | {
        "model_type": "smollm3",
        "num_hidden_layers": 4,
        "no_rope_layers": [1, 0, 1, 0],  # 1 is a layer with rope
        "rope_parameters": _rope("default", 5e6),
        "tie_word_embeddings": True,
    },
    "phi3": _PHI3,
    "phi3_longrope": _PHI3
    | {
        "original_max_position_embeddings": 64,
        "rope_parameters": _rope(
            "longrope",
            partial_rotary_factor=0.75,
            short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.4],
            long_factor=[1.1, 1.6, 2.5, 4.0, 6.0, 8.0],
        ),
        "tie_word_embeddings": True,
    },
    "stablelm": _STABLELM | {"use_qkv_bias": True, "num_key_value_heads": 4},
    "stablelm_parallel": _STABLELM | {"use_parallel_residual": True, "qk_layernorm": True},
    "gemma2": _GEMMA
    | {
        "model_type": "gemma2",
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": _GEMMA
    | {
        "model_type": "gemma3_text",
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": _rope("default", 10000.0),
            "full_attention": _rope("linear", 1e6, factor=8.0),
        },
    },
    "olmo2": _LLAMA_LIKE
    | {
        "model_type": "olmo2",
        "rms_norm_eps": 1e-6,
        "rope_parameters": _rope("default", 500000.0),
    },
    "gptj": _COMMON
    | {
        "model_type": "gptj",
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 512,
        "rotary_dim": 8,
    },
    "gpt_neox": _GPT_NEOX | {"rotary_pct": 0.25},
    "gpt_neox_sequential": _GPT_NEOX
    | {"rotary_pct": 1.0, "use_parallel_residual": False, "attention_bias": False},
    "falcon_7b": _FALCON | {"hidden_size": 48, "num_attention_heads": 3, "multi_query": True},
    "falcon_40b": _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_11b": _FALCON
    | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon_rw": _FALCON
    | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "falcon_alibi_parallel": _FALCON | {"alibi": True, "multi_query": True},
    "mpt": _MPT,
    "mpt_clip": _MPT | {"d_model": 48, "n_heads": 6, "attn_config": {"clip_qkv": 0.8}},
    "gpt2": _COMMON
    | {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 512,
        "tie_word_embeddings": True,
    },
    "opt": _COMMON
    | {
        "model_type": "opt",
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
}
ABSOLUTE_POSITION_VARIANTS = ("gpt2", "opt")  # learned positions: they cannot stream
STREAMING_VARIANTS = tuple(v for v in VARIANTS if v not in ABSOLUTE_POSITION_VARIANTS)


def tiny_model(variant: str, seed: int = 0) -> PreTrainedModel:
    """A small random ``...ForCausalLM`` in float32 whose logits depend visibly on attention.

    As `tests.reference.tiny_llama`: attention scores spread by about 2, norms and biases are not
    at their neutral values, and there is no end-of-sequence token.
    """
    config = AutoConfig.for_model(**copy.deepcopy(VARIANTS[variant]))
    model = AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    modules = dict(model.named_modules())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            module = modules[name.rpartition(".")[0]]
            parameter.copy_(_random_weight(name, module, noise))
    return model


def _random_weight(name: str, module: torch.nn.Module, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith("bias"):
        return 0.3 * noise
    if noise.dim() == 1:  # a norm
        center = 0.0 if "Gemma" in type(module).__name__ else 1.0
        if any(part in name for part in ("q_norm", "k_norm", "q_layernorm", "k_layernorm")):
            return center + 0.4 + 0.2 * noise
        return center + 0.2 * noise
    if isinstance(module, torch.nn.Embedding):  # Gemma multiplies by sqrt(hidden_size)
        return noise / getattr(module, "scalar_embed_scale", 2.0)
    fan_in = noise.shape[0] if type(module).__name__ == "Conv1D" else noise.shape[1]
    is_query_or_key = any(
        part in name for part in ("q_proj", "k_proj", "qkv", "query_key", "c_attn")
    )
    return (1.4 if is_query_or_key else 1.0) * fan_in**-0.5 * noise


def random_ids(model: PreTrainedModel, length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()


def _fresh_copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy in ``dtype`` that forgets what lengths it saw: dynamic rotary modules remember.

    Attention is eager, but not for Falcon with ALiBi: its eager path adds the bias twice, once
    in the mask and once in the scores.
    """
    model = copy.deepcopy(model).to(dtype)
    model.config._attn_implementation = "sdpa" if getattr(model.config, "alibi", False) else "eager"
    rotary = getattr(model.base_model, "rotary_emb", None)
    if hasattr(rotary, "original_inv_freq"):
        rotary.inv_freq = rotary.original_inv_freq.clone()
        rotary.max_seq_len_cached = rotary.original_max_seq_len
    return model


@torch.no_grad()
def full_logits(model: PreTrainedModel, token_ids: TokenIds) -> torch.Tensor:
    """Logits [T, vocab] of the model's own forward pass: float32, no cache, nothing evicted."""
    ids = torch.as_tensor(token_ids, dtype=torch.long)[None]
    return _fresh_copy(model, torch.float32)(ids, use_cache=False).logits[0]


# The published algorithm


class RawKeyCache:
    """What a transformers model takes for its cache: S sink tokens, then R recent ones.

    Keys are kept as projected. ``rotate`` is set by the layer that is being run, if it rotates at
    all, and turns the raw keys [1, heads, n, head_dim] to positions 0 .. n-1.
    """

    def __init__(self, num_sink_tokens: int, num_recent_tokens: int) -> None:
        self.num_sink_tokens = num_sink_tokens
        self.num_recent_tokens = num_recent_tokens
        self.num_tokens = 0  # before the token that is being run
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.rotate: Callable[[torch.Tensor], torch.Tensor] | None = None

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer_idx in self.layers:
            keys, values = self.layers[layer_idx]
            key, value = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=2)
        self.layers[layer_idx] = key, value
        rotate, self.rotate = self.rotate, None
        return (key if rotate is None else rotate(key)), value

    def evict(self) -> None:
        for index, tensors in self.layers.items():
            self.layers[index] = tuple(self._kept(t) for t in tensors)
        self.num_tokens = self.layers[0][0].shape[2]

    def _kept(self, tensor: torch.Tensor) -> torch.Tensor:
        length = tensor.shape[2]
        if length <= self.num_sink_tokens + self.num_recent_tokens:
            return tensor
        sinks, recent = self.num_sink_tokens, length - self.num_recent_tokens
        return torch.cat((tensor[:, :, :sinks], tensor[:, :, recent:]), dim=2)

    # What transformers asks its caches when it makes masks and ALiBi biases

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.num_tokens

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.num_tokens

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.num_tokens + query_length, 0


@contextmanager
def _rotated_by_cache(model: PreTrainedModel, cache: RawKeyCache) -> Iterator[None]:
    """Inside, ``model`` rotates queries only, to the end of ``cache``, which rotates the keys.

    cos and sin reach the replaced functions for every position that the cache can have.
    """
    module = sys.modules[type(model).__module__]
    apply = getattr(module, "apply_rotary_pos_emb", None)
    if apply is None:  # MPT
        yield
        return

    def rotate_query(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def rotate_keys(keys: torch.Tensor) -> torch.Tensor:
            n, rotary_dim = keys.shape[2], cos.shape[-1]
            turned = keys[..., :rotary_dim]
            turned, _ = apply(turned, turned, cos[:, :n], sin[:, :n])
            return torch.cat((turned, keys[..., rotary_dim:]), dim=-1)

        cache.rotate = rotate_keys
        at = slice(cache.num_tokens, cache.num_tokens + 1)
        return apply(q, q, cos[:, at], sin[:, at])[0], k

    def rotate_gptj(tensor: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
        def rotate_keys(keys: torch.Tensor) -> torch.Tensor:
            n, rotary_dim = keys.shape[2], 2 * cos.shape[-1]
            turned = keys[..., :rotary_dim].transpose(1, 2)  # GPT-J rotates [1, n, heads, dim]
            turned = apply(turned, sin[:, :n], cos[:, :n]).transpose(1, 2)
            return torch.cat((turned, keys[..., rotary_dim:]), dim=-1)

        if cache.rotate is None:  # GPT-J rotates the key first, then the query
            cache.rotate = rotate_keys
            return tensor
        at = slice(cache.num_tokens, cache.num_tokens + 1)
        return apply(tensor, sin[:, at], cos[:, at])

    replacement = rotate_gptj if model.config.model_type == "gptj" else rotate_query
    with mock.patch.object(module, "apply_rotary_pos_emb", replacement):
        yield


@torch.no_grad()
def published_logits(
    model: PreTrainedModel,
    token_ids: TokenIds,
    num_sink_tokens: int,
    window_size: int,
    *,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Logits [T, vocab] of the published algorithm, fed one token at a time.

    ``window_size`` counts the query's own token, so the published "S+R" is ``R = window_size - 1``
    and a step sees S + W keys at most. A layer with a sliding window L of its own sees the last L
    of those. Rotary frequencies that depend on the length are those of a sequence of S + W tokens:
    the rotary module is always asked for as many positions.
    """
    if model.config.model_type in ABSOLUTE_POSITION_VARIANTS:
        raise ValueError(f"{model.config.model_type} has learned positions: it cannot stream")
    model = _fresh_copy(model, dtype)
    cache = RawKeyCache(num_sink_tokens, window_size - 1)
    position_ids = torch.arange(num_sink_tokens + window_size)[None]
    logits = []
    with _rotated_by_cache(model, cache):
        for token in token_ids:
            output = model(
                torch.tensor([[int(token)]]), past_key_values=cache, position_ids=position_ids
            )
            logits.append(output.logits[0, 0])
            cache.evict()
    return torch.stack(logits)
