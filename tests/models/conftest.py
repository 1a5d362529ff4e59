"""Tiny random checkpoints, built with transformers and saved the way users find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests import family_reference

TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def tiny_llama():
    """Build a float32 LlamaForCausalLM with every parameter random, biases and norms included."""

    def build(**overrides: Any) -> LlamaForCausalLM:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**(TINY | overrides))).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.2)
        return model

    return build


@pytest.fixture
def tiny(monkeypatch):
    """Build `tests.family_reference.tiny_model` of a variant with some settings changed."""

    def build(variant: str, **overrides: Any) -> PreTrainedModel:
        settings = family_reference.VARIANTS[variant] | overrides
        monkeypatch.setitem(family_reference.VARIANTS, "changed", settings)
        return family_reference.tiny_model("changed")

    return build


@pytest.fixture
def save(tmp_path: Path):
    """Save a model, and a byte-level tokenizer, into a folder of its own."""

    def write(model: PreTrainedModel, **options: Any) -> Path:
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder, **options)
        byte_level_tokenizer().save_pretrained(folder)
        return folder

    return write


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *letters, "he"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    wrapped.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return wrapped
