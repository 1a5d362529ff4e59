"""An oracle for streaming over many model families that runs transformers' own modules.

`published_logits` is the published StreamingLLM algorithm token by token: a cache of raw keys,
rotated at every read by their place in the cache, evicted after the forward pass. A layer's raw
keys and values are functions of the hidden states that the layer was given, so these are what
`VisibleTokens` keeps; every step computes the keys and values from them again, as those of a
sequence that consists of the visible tokens and nothing else. The whole model, rotation, masks,
residuals, norms, scales, soft caps and ALiBi included, is transformers' own forward pass, without a
cache, so all that it derives from positions and lengths is in cache coordinates.

Nothing is written per family, and nothing here imports the engine. What is used of transformers is
``model(input_ids)``; the hidden states are exchanged by a hook of torch's before each layer.

Precision: transformers rounds inside norms, softmax and angles to float32, whatever the model's
dtype, so even in float64 the logits are good to about 1e-6 times their size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
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
        "partial_rotary_factor": 0.75,
        "rope_parameters": _rope(
            "longrope",
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


def _copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy in ``dtype`` to run: dynamic rotary modules remember the longest length they saw.

    Attention is eager, but not for Falcon with ALiBi: its eager path adds the bias twice, once
    in the mask and once in the scores.
    """
    model = nn.Module.to(copy.deepcopy(model), dtype)
    model.set_attn_implementation("sdpa" if getattr(model.config, "alibi", False) else "eager")
    return model


@torch.no_grad()
def full_logits(
    model: PreTrainedModel, token_ids: TokenIds, *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Logits [T, vocab] of the model's own forward pass: no cache, nothing evicted."""
    ids = torch.as_tensor(token_ids, dtype=torch.long)[None]
    return _copy(model, dtype)(ids, use_cache=False).logits[0]


@torch.no_grad()
def full_hidden_states(model: PreTrainedModel, token_ids: TokenIds) -> torch.Tensor:
    """As `full_logits`, the hidden states [T, hidden_size] after the final norm."""
    ids = torch.as_tensor(token_ids, dtype=torch.long)[None]
    return _copy(model, torch.float32).base_model(ids, use_cache=False).last_hidden_state[0]


# The published algorithm


class VisibleTokens:
    """The tokens that a stream sees: S sink tokens, then R recent ones, and the one being run.

    Of each it keeps the hidden states that every layer was given when the token was run.

    Args:
        model: what `step` runs; `attached` says when.
    """

    def __init__(
        self, model: PreTrainedModel, num_sink_tokens: int, num_recent_tokens: int
    ) -> None:
        self.model = model
        self.num_sink_tokens = num_sink_tokens
        self.num_recent_tokens = num_recent_tokens
        self.num_tokens = 0  # before the token that is being run
        self.kept: dict[nn.Module, torch.Tensor] = {}  # by layer: [num_tokens, hidden_size]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, every layer of the model is given the kept hidden states."""
        stacks = (m for m in self.model.modules() if isinstance(m, nn.ModuleList))
        layers = next(m for m in stacks if len(m) == self.model.config.num_hidden_layers)
        hooks = [layer.register_forward_pre_hook(self._exchange) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _exchange(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replaces the hidden states [1, N, hidden_size] of the kept tokens; keeps the new one's.

        They are a layer's first positional argument, because gradient checkpointing wants them so.
        """
        hidden, *others = args
        if layer in self.kept:
            hidden = torch.cat((self.kept[layer], hidden[0, self.num_tokens :]))[None]
        self.kept[layer] = hidden[0, : self.num_tokens + 1]
        return hidden, *others

    def step(self, token_id: int, **options: Any) -> Any:
        """Runs one token at its place, and evicts; the output's rows are the places.

        The sequence is always S + R + 1 tokens long, because rotary frequencies may depend on its
        length. No token sees those behind it: what follows the new token does not matter.
        """
        length = self.num_sink_tokens + self.num_recent_tokens
        ids = torch.zeros(1, length + 1, dtype=torch.long)
        ids[0, self.num_tokens] = token_id
        output = self.model(ids, use_cache=False, **options)
        self.num_tokens += 1
        if self.num_tokens > length:
            self.num_tokens = length
            for layer, hidden in self.kept.items():
                evicted = (hidden[: self.num_sink_tokens], hidden[self.num_sink_tokens + 1 :])
                self.kept[layer] = torch.cat(evicted)
        return output


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
    of those. Rotary frequencies that depend on the length are those of a sequence of S + W tokens.
    """
    if model.config.model_type in ABSOLUTE_POSITION_VARIANTS:
        raise ValueError(f"{model.config.model_type} has learned positions: it cannot stream")
    visible = VisibleTokens(_copy(model, dtype), num_sink_tokens, window_size - 1)
    return _token_by_token(visible, token_ids, lambda output: output.logits)


@torch.no_grad()
def published_hidden_states(
    model: PreTrainedModel, token_ids: TokenIds, num_sink_tokens: int, window_size: int
) -> torch.Tensor:
    """As `published_logits`, the hidden states [T, hidden_size] after the final norm."""
    inner: Any = _copy(model, torch.float64).base_model
    visible = VisibleTokens(inner, num_sink_tokens, window_size - 1)
    return _token_by_token(visible, token_ids, lambda output: output.last_hidden_state)


def _token_by_token(
    visible: VisibleTokens, token_ids: TokenIds, read: Callable[[Any], torch.Tensor]
) -> torch.Tensor:
    rows = []
    with visible.attached():
        for token in token_ids:
            place = visible.num_tokens
            rows.append(read(visible.step(int(token)))[0, place])
    return torch.stack(rows)
