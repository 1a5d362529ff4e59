"""GGUF files as llama.cpp's converter writes them, metadata and layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel

from paged_stream.layers.blocks import BLOCK_FORMATS

ARCHITECTURES = {"gemma3_text": "gemma3"}


def write_gguf(
    model: PreTrainedModel,
    path: Path,
    tensors: dict[str, np.ndarray] | None = None,
    kind_of: Callable[[str], Kind] | None = None,
    only: Iterable[gguf.ReaderTensor] | None = None,
    split: tuple[int, int] | None = None,
    **metadata: Any,
) -> Path:
    """Write a file whose feed-forward matrices are quantised where their rows can be.

    Args:
        kind_of: the format of each matrix, by its name in the file, if not that.
        tensors: written besides the model's.
        only: these tensors of another file, instead of all.
        split: the file's index and the number of files; those after the first say nothing else.
        metadata: more of it, ``__`` for ``.``, with the architecture in front unless that is there;
            ``None`` leaves out what is written otherwise.
    """
    architecture = ARCHITECTURES.get(model.config.model_type, model.config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    if split is not None:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
    names = [key.replace("__", ".") for key in metadata]
    given = {
        name if name.startswith(("split.", "tokenizer.")) else f"{architecture}.{name}": value
        for name, value in zip(names, metadata.values(), strict=True)
    }
    add_vocabulary(writer, model.config.vocab_size, sentencepiece="gemma" in architecture)
    for key, value in (_metadata(model.config, architecture) | given).items():
        _add(writer, key, value)
    for read in only or ():
        writer.add_tensor(read.name, read.data, raw_dtype=read.tensor_type)
    own = {} if only is not None else _tensors(model, architecture)
    for name, tensor in (own | (tensors or {})).items():
        if tensor.ndim == 2 and (kind_of or "ffn" in name):
            kind = Kind.Q8_0 if tensor.shape[1] % 32 == 0 else Kind.F16
            kind = kind_of(name) if kind_of else kind
            writer.add_tensor(name, quantized(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantized(tensor: np.ndarray, kind: Kind) -> np.ndarray:
    """Blocks that are near a matrix; of formats that gguf only reads, blocks with random codes."""
    try:
        return gguf.quants.quantize(tensor, kind)
    except NotImplementedError:
        pass
    size, num_bytes, scales = BLOCK_FORMATS[kind.name]
    random = np.random.default_rng(tensor.size)
    shape = (tensor.shape[0], tensor.shape[1] // size, num_bytes)
    blocks = random.integers(0, 256, shape, dtype=np.uint8)
    # Scales that make the numbers as large as the matrix's are.
    halves = np.ones((*shape[:2], (scales.stop - scales.start) // 2), np.float16)
    blocks[..., scales] = halves.view(np.uint8)
    spread = gguf.quants.dequantize(blocks.reshape(shape[0], -1), kind).std()
    halves *= tensor.std() / spread
    blocks[..., scales] = halves.view(np.uint8)
    return blocks.reshape(shape[0], -1)


def llama3_factors(config: Any) -> np.ndarray:
    """What frequencies are divided by, float32 [head_dim / 2], for parameters of type llama3."""
    rope = config.rope_parameters
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for pair in range(config.head_dim // 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (2 * pair / config.head_dim)
        smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
        factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def _metadata(config: Any, architecture: str) -> dict[str, Any]:
    head_dim = getattr(config, "head_dim", None)
    fields = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
    }
    if architecture == "llama":
        fields |= {"rope.dimension_count": head_dim, "vocab_size": config.vocab_size}
    if architecture == "gemma3":
        fields["rope.freq_base"] = config.rope_parameters["full_attention"]["rope_theta"]
    elif architecture != "gemma2":
        fields["rope.freq_base"] = config.rope_parameters["rope_theta"]
    if "gemma" in architecture:
        fields["attention.sliding_window"] = config.sliding_window
        fields["attn_logit_softcapping"] = config.attn_logit_softcapping
        fields["final_logit_softcapping"] = config.final_logit_softcapping
    return {f"{architecture}.{key}": value for key, value in fields.items()}


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    for part in writer.kv_data:
        part.pop(key, None)  # some releases of gguf refuse to write a key twice
    if value is not None:
        getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def _tensors(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    config = model.config
    enums = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(enums[architecture], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for source, tensor in model.state_dict().items():
        if source == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture == "llama" and (part := source.split(".")[-2]) in heads:
            tensor = _interleave(tensor, heads[part])
        if "gemma" in architecture and source.endswith("norm.weight"):
            tensor = tensor + 1
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        assert name is not None, source
        tensors[name] = tensor.numpy()
    return tensors


def _interleave(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Bring the two halves that are rotated together side by side."""
    halves = tensor.reshape(num_heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def add_vocabulary(writer: gguf.GGUFWriter, size: int, *, sentencepiece: bool) -> None:
    """Every byte, ``he``, and ``</s>`` as number 2."""
    tokens = ["<unk>", "<s>", "</s>"]
    if sentencepiece:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        tokens += ["\u2581", *"helo", "he", "ll"]
        writer.add_add_space_prefix(False)  # as of Gemma
    else:
        tokens += [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
        writer.add_tokenizer_pre("default")
        writer.add_token_merges(["h e"])
    tokens += [f"<extra{index}>" for index in range(size - len(tokens))]
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (size - 3))
    writer.add_token_scores([-float(index) for index in range(size)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
