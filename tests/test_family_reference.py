"""The families' oracle agrees with transformers, and depends on what it should."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager

import pytest
import torch
from transformers import AttentionMaskInterface
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

from tests import reference
from tests.family_reference import (
    ABSOLUTE_POSITION_VARIANTS,
    STREAMING_VARIANTS,
    VARIANTS,
    VisibleTokens,
    _copy,
    full_logits,
    published_logits,
    random_ids,
    tiny_model,
)


@contextmanager
def masked(visible):
    """Inside, transformers' eager and sdpa attention see ``visible`` [T, T] and nothing else."""

    def restricted(make_mask):
        def make(*args, **kwargs):
            mask = make_mask(*args, **kwargs)
            if mask.dtype == torch.bool:
                return mask & visible
            return mask.masked_fill(~visible, torch.finfo(mask.dtype).min)

        return make

    interface = AttentionMaskInterface()
    originals = {name: interface[name] for name in ("eager", "sdpa")}
    try:
        for name, make_mask in originals.items():
            AttentionMaskInterface.register(name, restricted(make_mask))
        yield
    finally:
        for name, make_mask in originals.items():
            AttentionMaskInterface.register(name, make_mask)


def true_distance_logits(model, ids, num_sink_tokens, window_size):
    """One forward pass that sees sink tokens and window, all of them at their true distances.

    The published algorithm differs from it in the distance to the sink tokens, and in nothing else.
    """
    p = torch.arange(len(ids))
    with masked((p < num_sink_tokens) | (p[:, None] - window_size < p)):
        return full_logits(model, ids)


def largest_difference(a, b):
    """Largest difference [T] at each position, the logits' common offset aside."""
    a, b = a.double().log_softmax(-1), b.double().log_softmax(-1)
    return (a - b).abs().amax(-1)


# Nothing but eager attention knows Gemma-2's soft cap, even where another one is the default.
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "gemma2"])
def test_full_logits_are_those_of_the_default_attention(variant):
    """Of which eager attention is one more implementation, but for Falcon's doubled ALiBi."""
    model = tiny_model(variant)
    ids = random_ids(model, 40)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(full_logits(model, ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", STREAMING_VARIANTS)
def test_equals_the_models_own_pass_until_eviction(variant):
    model = tiny_model(variant, 1)
    ids = random_ids(model, 40)
    expected = full_logits(model, ids)
    logits = published_logits(model, ids, 4, 36)
    assert logits.shape == (40, 97) and logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=1e-4)
    # One token past S + W, something has been evicted, and it shows from there on only.
    evicting = published_logits(model, ids, 4, 35)
    before = full_logits(model, ids[:39])  # of its own: dynamic rope depends on the length
    torch.testing.assert_close(evicting[:39].float(), before, rtol=0, atol=1e-4)
    difference = largest_difference(evicting[39:], expected[39:]).item()
    window = getattr(model.config, "sliding_window", None)
    layers = getattr(model.config, "layer_types", None) or ["sliding_attention"]
    if window is not None and window < 36 and set(layers) == {"sliding_attention"}:
        # Every layer's own window is shorter: none would see what was evicted.
        assert difference < 1e-4
    else:
        assert difference > 1e-2


@pytest.mark.parametrize("variant", STREAMING_VARIANTS)
def test_without_sinks_equals_one_banded_pass(variant):
    """Far past the window: where no distance is clamped, cache coordinates are true distances."""
    model = tiny_model(variant, 2)
    ids = random_ids(model, 31)  # below the length where llama_dynamic's frequencies change
    for window_size in (7, 1, 12):
        logits = published_logits(model, ids, 0, window_size).float()
        expected = true_distance_logits(model, ids, 0, window_size)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", STREAMING_VARIANTS)
def test_logits_depend_on_sinks_window_and_sink_distance(variant):
    """A wrong S, W or sink distance cannot hide below the tolerance of the engine's tests."""
    model = tiny_model(variant, 3)
    ids = random_ids(model, 48)
    base = published_logits(model, ids, 4, 8)
    others = {
        "S - 1": published_logits(model, ids, 3, 8),
        "S + 1": published_logits(model, ids, 5, 8),
        "W - 1": published_logits(model, ids, 4, 7),
        "W + 1": published_logits(model, ids, 4, 9),
        "no sinks": published_logits(model, ids, 0, 12),
        "true distance": true_distance_logits(model, ids, 4, 8),
    }
    for name, other in others.items():
        difference = largest_difference(base[20:], other[20:])
        assert difference.median() > 0.1, (name, difference.median())


@pytest.mark.parametrize("variant", ["llama2", "llama3", "llama_linear", "llama_yarn"])
def test_equals_the_llama_oracle(variant):
    """tests/reference.py shares nothing with this oracle but the weights."""
    model = tiny_model(variant, 4)
    ids = random_ids(model, 60)
    for num_sink_tokens, window_size in ((4, 12), (0, 9), (3, 1), (11, 5)):
        logits = published_logits(model, ids, num_sink_tokens, window_size)
        expected = reference.published_logits(model, ids, num_sink_tokens, window_size)
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("variant", "limit"), [("phi3_longrope", 64), ("llama_dynamic", 32)])
def test_frequencies_are_those_of_the_bounded_length(variant, limit):
    model = tiny_model(variant, 5)
    ids = random_ids(model, limit + 8)
    short = published_logits(model, ids, 4, limit - 4)
    long = published_logits(model, ids, 4, limit + 4)
    torch.testing.assert_close(
        short[:limit].float(), full_logits(model, ids[:limit]), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(long.float(), full_logits(model, ids), rtol=0, atol=1e-4)
    # Fixed from the first token on, not switched when the stream gets there
    assert largest_difference(short[1:limit], long[1:limit]).min() > 1e-3
    assert largest_difference(short[:limit], long[:limit]).max() > 3e-2


@pytest.mark.parametrize("variant", ["mistral", "qwen2_sliding", "gemma2", "gemma3", "qwen2"])
def test_own_windows_are_in_cache_coordinates(variant):
    model = _copy(tiny_model(variant, 6), torch.float64)
    sliding = {
        "mistral": [True] * 3,
        "qwen2_sliding": [False, False, True, True],
        "gemma2": [True, False] * 2,
        "gemma3": [True, False] * 2,
        "qwen2": [False] * 4,
    }[variant]
    visible = VisibleTokens(model, 4, 6)
    with torch.no_grad(), visible.attached():
        for step, token in enumerate(random_ids(model, 30)):
            place = min(step, 10)
            output = visible.step(token, output_attentions=True)
            distance = place - torch.arange(11)
            for weights, is_sliding in zip(output.attentions, sliding, strict=True):
                seen = (weights[0, :, place] > 0).all(0)
                expected = (distance >= 0) & ((distance < 9) | torch.tensor(not is_sliding))
                assert seen.tolist() == expected.tolist()


def attentions(model):
    return [m for m in model.modules() if type(m).__name__.endswith("Attention")]


def set_everywhere(name, value):
    def change(model):
        for attention in attentions(model):
            assert getattr(attention, name) != value
            setattr(attention, name, value)

    return change


def scale_parameters(part, factor):
    def change(model):
        chosen = [p for name, p in model.named_parameters() if part in name]
        assert chosen
        for parameter in chosen:
            parameter.data *= factor

    return change


def rotating_everywhere(model):
    assert not all(attention.use_rope for attention in attentions(model))
    for attention in attentions(model):
        attention.use_rope = True


def without_final_softcap(model):
    model.config.final_logit_softcapping = None


def without_yarn_scaling(model):
    model.model.rotary_emb.attention_scaling = 1.0


def swapped_thetas(model):
    rotary = model.model.rotary_emb
    names = ("sliding_attention_inv_freq", "full_attention_inv_freq")
    a, b = (getattr(rotary, name).clone() for name in names)
    setattr(rotary, names[0], b)
    setattr(rotary, names[1], a)


DETAILS = {
    "softcap": ("gemma2", set_everywhere("attn_logit_softcapping", None)),
    "final softcap": ("gemma2", without_final_softcap),
    "gemma2 scale": ("gemma2", set_everywhere("scaling", 16**-0.5)),
    "gemma3 scale": ("gemma3", set_everywhere("scaling", 16**-0.5)),
    "gemma3 thetas": ("gemma3", swapped_thetas),
    "gemma3 qk-norm": ("gemma3", scale_parameters("k_norm", 0)),
    "gemma norms": ("gemma2", scale_parameters("post_attention_layernorm", 0)),
    "clip": ("mpt_clip", set_everywhere("clip_qkv", None)),
    "qwen3 qk-norm": ("qwen3", scale_parameters("q_norm", 0.8)),
    "olmo2 qk-norm": ("olmo2", scale_parameters("q_norm", 0.8)),
    "stablelm qk-norm": ("stablelm_parallel", scale_parameters("q_layernorm", 0.8)),
    "no rope": ("smollm3", rotating_everywhere),
    "yarn": ("llama_yarn", without_yarn_scaling),
    "qwen2 bias": ("qwen2", scale_parameters("v_proj.bias", 0)),
    "stablelm bias": ("stablelm", scale_parameters("q_proj.bias", 0)),
    "gpt_neox bias": ("gpt_neox", scale_parameters("query_key_value.bias", 0)),
    "falcon bias": ("falcon_rw", scale_parameters("query_key_value.bias", 0)),
    "gptj head bias": ("gptj", scale_parameters("lm_head.bias", 0)),
}


@pytest.mark.parametrize("detail", DETAILS)
def test_details_matter(detail):
    """A decoder that leaves one of these out cannot stay below the engine's tolerance."""
    variant, change = DETAILS[detail]
    model = tiny_model(variant, 7)
    changed = copy.deepcopy(model)
    change(changed)
    ids = random_ids(model, 40)
    base, other = (published_logits(m, ids, 4, 12) for m in (model, changed))
    assert (base - other).abs().amax(-1)[20:].min() > 1e-2


def test_falcon_alibi_is_exact_here():
    """transformers rounds slopes and products to bfloat16; with 4 heads to 256 that changes none.

    Other head counts have slopes that are no powers of two, and longer streams more digits.
    """
    slopes = torch.tensor([2.0 ** -(2 * head) for head in range(1, 5)])
    alibi = build_alibi_tensor(torch.ones(1, 257, dtype=torch.long), 4, torch.float32)
    assert torch.equal(alibi[:, 0], slopes[:, None] * torch.arange(257))
    alibi = build_alibi_tensor(torch.ones(1, 300, dtype=torch.long), 4, torch.float32)
    assert not torch.equal(alibi[:, 0], slopes[:, None] * torch.arange(300))
    alibi = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), 16, torch.float32)
    assert alibi[0, 0, 1] != math.sqrt(0.5) and abs(alibi[0, 0, 1] - math.sqrt(0.5)) < 2**-8


@pytest.mark.parametrize("variant", ["llama_dynamic", "gptj", "falcon_rw", "mpt"])
def test_the_model_is_left_as_it_was(variant):
    model = tiny_model(variant, 8)
    ids = random_ids(model, 40)
    before = model(torch.tensor([ids])).logits
    published_logits(model, ids, 4, 60)
    with pytest.raises(IndexError):
        published_logits(model, [97], 4, 60)
    assert model.dtype == torch.float32
    assert torch.equal(model(torch.tensor([ids])).logits, before)


def test_hooks_and_masks_are_undone():
    model = tiny_model("llama2", 8)
    ids = torch.tensor([random_ids(model, 12)])
    before = model(ids).logits
    visible = VisibleTokens(model, 2, 3)
    with pytest.raises(IndexError), visible.attached():
        visible.step(97)
    true_distance_logits(model, ids[0], 0, 2)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("variant", ABSOLUTE_POSITION_VARIANTS)
def test_absolute_positions_cannot_stream(variant):
    model = tiny_model(variant, 9)
    ids = random_ids(model, 20)
    logits = full_logits(model, ids)
    assert logits.shape == (20, 97)
    assert largest_difference(logits[-1:], full_logits(model, ids[1:])[-1:]).item() > 1e-2
    with pytest.raises(ValueError, match="cannot stream"):
        published_logits(model, ids, 4, 8)


def test_weights_depend_on_the_seed_only():
    for variant in VARIANTS:
        a, b, c = (tiny_model(variant, seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert not all(torch.equal(a[name], c[name]) for name in a)
