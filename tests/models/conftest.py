"""Tiny random Llama checkpoints, built with transformers and saved the way users find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from paged_stream.models.decoder import Decoder
from paged_stream.models.registry import family_of

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
def save(tmp_path: Path):
    """Save a model, and a byte-level tokenizer, into a folder of its own."""

    def write(model: LlamaForCausalLM, **options: Any) -> Path:
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder, **options)
        byte_level_tokenizer().save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def assert_equals_gguf():
    """Check that every parameter equals what transformers reads from a GGUF file, bit for bit."""

    def check(decoder: Decoder, path: Path) -> None:
        oracle = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        ).state_dict()
        parameters = dict(decoder.named_parameters())
        unseen = {name: parameter.numel() for name, parameter in parameters.items()}
        for weight in family_of("llama").weights(decoder.config):
            loaded = parameters[weight.target][weight.start : weight.stop]
            assert torch.equal(loaded, oracle[weight.source]), weight.source
            unseen[weight.target] -= loaded.numel()
        assert not any(unseen.values())

    return check


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
