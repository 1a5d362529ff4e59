"""Loading a checkpoint and comparing it, bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

from paged_stream.attention.native import NativeBackend
from paged_stream.models.decoder import Decoder
from paged_stream.models.formats.files import ModelFiles
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config, load_model
from paged_stream.models.registry import family_of


def load_decoder(model: Path | ModelFiles, cache_dir: Path | None = None) -> Decoder:
    """Load a model folder, or a file, in float32."""
    if isinstance(model, ModelFiles):
        files = model
    else:
        files = resolve_model(model, cache_dir=cache_dir)
    return load_model(files, load_config(files), torch.float32, "cpu", NativeBackend())


def assert_same(decoder: Decoder, other: Decoder) -> None:
    """Check that two decoders are the same model, bit for bit."""
    assert decoder.config == other.config
    for name, parameter in other.named_parameters():
        assert torch.equal(decoder.get_parameter(name), parameter), name


def assert_equals_gguf(decoder: Decoder, folder: Path, path: Path) -> None:
    """Check that every parameter equals what transformers reads from a GGUF file, bit for bit.

    It is given the configuration of the converted ``folder``: its own loses head_dim and more.
    """
    state = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        config=AutoConfig.from_pretrained(folder),
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).state_dict()
    parameters = dict(decoder.named_parameters())
    unseen = {name: parameter.numel() for name, parameter in parameters.items()}
    for weight in family_of(decoder.config.model_type).weights(decoder.config, parameters):
        expected = state[weight.source]
        if weight.transform is not None:
            expected = weight.transform(expected, decoder.config)
        loaded = parameters[weight.target][weight.start : weight.stop]
        assert torch.equal(loaded, expected), weight.source
        unseen[weight.target] -= loaded.numel()
    assert not any(unseen.values())
