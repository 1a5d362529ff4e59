"""Quantised projections: a GGUF file's own blocks, or blocks made while loading."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from paged_stream import LLMEngine, SamplingParams
from paged_stream.attention.native import NativeBackend
from paged_stream.config import EngineConfig
from paged_stream.layers.linear import Linear
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config, load_model
from tests.models.gguf_files import write_gguf

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}


def load(files, quantization):
    config = load_config(files)
    return load_model(files, config, torch.float32, "cpu", NativeBackend(), quantization)


def projections(decoder):
    return {name: m for name, m in decoder.named_modules() if isinstance(m, Linear)}


def values(linear):
    """The float32 weight that a projection's blocks stand for."""
    kind = Kind[linear.block_format]
    return torch.from_numpy(dequantize(linear.blocks.numpy(), kind))


@pytest.fixture
def files(tiny_llama, tmp_path):
    def make(kind="Q8_0", **shape):
        model = tiny_llama(**(SHAPE | shape))
        path = write_gguf(model, tmp_path / "tiny.gguf", kind_of=lambda name: Kind[kind])
        return resolve_model(path, cache_dir=tmp_path / "cache")

    return make


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_file_runs_in_its_own_blocks(files, kind, tied):
    files = files(kind, tie_word_embeddings=tied)
    plain, decoder = load(files, None), load(files, "auto")
    assert torch.equal(plain.embedding.weight, decoder.embedding.weight)
    for name, linear in projections(decoder).items():
        assert linear.block_format == kind, name
        assert torch.equal(values(linear), projections(plain)[name].weight), name


def test_other_formats_run_in_the_dtype(files):
    decoder = load(files("Q5_0"), "auto")
    assert all(linear.block_format is None for linear in projections(decoder).values())


def test_only_blocks_of_one_format_make_a_projection(tiny_llama, tmp_path):
    """Q, K and V in different formats have no layout in common."""

    def kind_of(name):
        return Kind.Q8_0 if "attn_v" in name else Kind.Q4_1

    path = write_gguf(tiny_llama(**SHAPE), tmp_path / "tiny.gguf", kind_of=kind_of)
    decoder = load(resolve_model(path, cache_dir=tmp_path / "cache"), "auto")
    for name, linear in projections(decoder).items():
        assert linear.block_format == (None if "qkv" in name else "Q4_1"), name


@pytest.mark.parametrize(("quantization", "inner"), [("int8", "Q8_0"), ("int4", "Q4_1")])
def test_any_model_is_rounded_while_loading(save, tiny_llama, quantization, inner):
    files = resolve_model(save(tiny_llama(**SHAPE)))
    plain, decoder = load(files, None), load(files, quantization)
    for name, linear in projections(decoder).items():
        block_format = "Q8_0" if name == "head" else inner
        assert linear.block_format == block_format
        weight = projections(plain)[name].weight.numpy()
        kind = Kind[block_format]
        assert torch.equal(
            values(linear), torch.from_numpy(dequantize(quantize(weight, kind), kind))
        )
    assert all(m.block_format is None for m in projections(load(files, "auto")).values())


def test_rows_must_be_whole_blocks(save, tiny_llama):
    files = resolve_model(save(tiny_llama(**(SHAPE | {"intermediate_size": 80}))))
    with pytest.raises(ValueError, match="multiple of 32 .*mlp.down has 80; use quantization=None"):
        load(files, "int8")


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_tokens_do_not_depend_on_company_or_chunks(save, tiny_llama, quantization):
    folder = save(tiny_llama(**SHAPE))

    def engine(**settings):
        return LLMEngine(
            EngineConfig(
                model=str(folder),
                dtype="float32",
                quantization=quantization,
                window_size=24,
                kv_cache_memory_bytes=4 << 20,
                **settings,
            )
        )

    prompts = [[(7 * i + j) % 90 for j in range(5 + 9 * i)] for i in range(6)]
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)

    def run(engine, prompts):
        tokens = {i: [] for i in range(len(prompts))}
        for i, prompt in enumerate(prompts):
            engine.add_request(str(i), prompt, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens[int(output.request_id)] += output.delta_token_ids
        return list(tokens.values())

    together = run(engine(max_num_seqs=6, max_num_batched_tokens=64), prompts)
    alone = [run(engine(max_num_seqs=1, max_num_batched_tokens=7), [p])[0] for p in prompts]
    assert together == alone
