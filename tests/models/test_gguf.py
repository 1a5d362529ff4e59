"""GGUF files: converted once, exactly, atomically; broken ones say what they are."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from paged_stream.attention.native import NativeBackend
from paged_stream.models import gguf as converter
from paged_stream.models.loader import load_config, load_model, resolve_model
from paged_stream.tokenizer import load_tokenizer

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}


def interleave(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """What llama.cpp's converter does to the rows of Q and K."""
    halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def write_gguf(model: LlamaForCausalLM, path: Path, **metadata: str) -> Path:
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    add_vocabulary(writer, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tied = config.tie_word_embeddings
    for source, tensor in model.state_dict().items():
        if source == "lm_head.weight" and tied:
            continue
        if (part := source.split(".")[-2]) in heads:
            tensor = interleave(tensor, heads[part])
        name, data = names.get_name(source, try_suffixes=(".weight",)), tensor.numpy()
        if "ffn" in name and data.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    from tokenizers import pre_tokenizers

    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
    tokens += [f"<extra{index}>" for index in range(size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (size - 3))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_equal_transformers(tiny_llama, assert_equals_gguf, tmp_path, tied):
    model = tiny_llama(**SHAPE, tie_word_embeddings=tied, rope_parameters={"rope_theta": 5e4})
    path = write_gguf(model, tmp_path / "tiny.gguf")
    files = resolve_model(path, cache_dir=tmp_path / "cache")
    decoder = load_model(files, torch.float32, "cpu", NativeBackend())
    assert_equals_gguf(decoder, path)
    # F32 tensors come back as they were, so the permutation is undone rather than doubled.
    query = decoder.layers[1].attention.qkv.weight[: decoder.config.query_size]
    assert torch.equal(query, model.model.layers[1].self_attn.q_proj.weight)
    config = load_config(files)
    assert (config.tie_word_embeddings, config.eos_token_ids) == (tied, (2,))
    assert config.rotary.inv_freq == tuple(model.model.rotary_emb.inv_freq.tolist())
    assert config.dtype == torch.bfloat16  # Q8_0 inside
    tokenizer = load_tokenizer(files)
    oracle = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert tokenizer.encode("a b") == oracle("a b")["input_ids"]
    assert tokenizer.encode("hello") == oracle.encode("hello")
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_converted_once(tiny_llama, tmp_path, monkeypatch):
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf")
    first = resolve_model(path, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(converter, "convert", None)
    moved = path.rename(tmp_path / "sub.gguf").rename(tmp_path / "tiny.gguf")
    assert resolve_model(moved, cache_dir=tmp_path / "cache").folder == first.folder


def test_cache_root_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert converter.default_cache_dir() == tmp_path / "paged_stream"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert converter.default_cache_dir() == Path.home() / ".cache" / "paged_stream"


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "some.gguf"
    path.write_bytes(b"x")

    def fail(path, folder):
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(converter, "convert", fail)
    with pytest.raises(KeyboardInterrupt):
        converter.cached_conversion(path, tmp_path / "cache")
    assert [entry.suffix for entry in (tmp_path / "cache" / "gguf").iterdir()] == [".lock"]


def test_leftovers_of_a_killed_process_go(tmp_path, monkeypatch):
    path = tmp_path / "some.gguf"
    path.write_bytes(b"x")
    monkeypatch.setattr(converter, "convert", lambda path, folder: (folder / "done").touch())
    folder = converter.cached_conversion(path, tmp_path / "cache")
    stale = folder.with_name(f"{folder.name}.tmpabc")
    folder.rename(stale)
    assert converter.cached_conversion(path, tmp_path / "cache") == folder
    assert (folder / "done").exists() and not stale.exists()


def test_simultaneous_starts_convert_once(tmp_path, monkeypatch):
    path = tmp_path / "some.gguf"
    path.write_bytes(b"x")
    calls, folders = [], []

    def slow(path, folder):
        calls.append(folder)
        time.sleep(0.2)

    monkeypatch.setattr(converter, "convert", slow)
    start = lambda: folders.append(converter.cached_conversion(path, tmp_path / "cache"))  # noqa: E731
    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len(folders) == 4 and len(set(folders)) == 1


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.02, 0.5, 0.99])
def test_truncated(tiny_llama, tmp_path, fraction):
    whole = write_gguf(tiny_llama(**SHAPE), tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(ValueError) as error:
        resolve_model(path, cache_dir=tmp_path / "cache")
    message = str(error.value)
    assert str(path) in message and "fetch the file again" in message and "\n" not in message


def test_what_cannot_be_represented_is_refused(tiny_llama, tmp_path):
    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "a.gguf", llama__rope__scaling__type="yarn")
    with pytest.raises(ValueError, match=r"a\.gguf: .*rope\.scaling\.type='yarn'.*safetensors"):
        resolve_model(path, cache_dir=tmp_path / "cache")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "bert")
    writer.add_tensor("t", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"b\.gguf: .*'bert' is not supported; supported: llama"):
        resolve_model(tmp_path / "b.gguf", cache_dir=tmp_path / "cache")
