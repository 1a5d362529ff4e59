"""Quantised projections: a GGUF file's own blocks, or blocks made while loading."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from paged_stream import LLMEngine, SamplingParams
from paged_stream.attention.native import NativeBackend
from paged_stream.config import EngineConfig
from paged_stream.layers.blocks import BLOCK_FORMATS
from paged_stream.layers.linear import Linear
from paged_stream.models.formats.gguf_file import read_gguf
from paged_stream.models.formats.quantization import planned_parts, weight_bytes
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config, load_model
from paged_stream.models.registry import family_of
from paged_stream.models.sharding import Rank
from tests.models.gguf_files import write_gguf

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 2}


def load(files, quantization):
    config = load_config(files)
    return load_model(files, config, torch.float32, "cpu", NativeBackend(), quantization)


def projections(decoder):
    return {name: m for name, m in decoder.named_modules() if isinstance(m, Linear)}


def formats(decoder):
    return {name: linear.block_formats for name, linear in projections(decoder).items()}


def values(module):
    """The float32 weight that a module's blocks stand for."""
    parts = [(part.format, part.data) for part in module.parts()]
    return torch.cat(
        [torch.from_numpy(dequantize(data.numpy(), Kind[kind])) for kind, data in parts]
    )


WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 2}


@pytest.fixture
def files(tiny_llama, tmp_path):
    def make(kind="Q8_0", **shape):
        kind_of = kind if callable(kind) else lambda name: kind
        path = write_gguf(
            tiny_llama(**(SHAPE | shape)),
            tmp_path / "tiny.gguf",
            kind_of=lambda name: Kind[kind_of(name)],
        )
        return resolve_model(path, cache_dir=tmp_path / "cache")

    return make


@pytest.mark.parametrize("kind", [kind for kind in BLOCK_FORMATS if kind != "Q4_Z"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_file_runs_in_its_own_blocks(files, kind, tied):
    files = files(kind, tie_word_embeddings=tied, **WIDE)
    plain, decoder = load(files, None), load(files, "auto")
    assert set(map(tuple, formats(decoder).values())) == {(kind,)}
    assert decoder.embedding.weight is None and decoder.embedding.block_format == kind
    expected = {name: linear.weight for name, linear in projections(plain).items()}
    for name, linear in projections(decoder).items():
        assert torch.equal(values(linear), expected[name]), name
    decoder.pack_weights()
    ids = torch.tensor([7, 299, 0, 7])
    assert torch.equal(decoder.embedding.forward(ids), plain.embedding.forward(ids))
    assert (decoder.embedding.packed_weight is decoder.head.packed_weight) == tied


def test_other_formats_run_in_the_dtype(files):
    decoder = load(files("TQ1_0", **WIDE), "auto")
    assert not any(formats(decoder).values())
    assert decoder.embedding.weight is not None


def q4_k_m(name):
    """As llama.cpp mixes them: better formats where they matter most."""
    if "attn_v" in name or "ffn_down" in name or "output.weight" in name:
        return "Q6_K"
    return "Q4_K"


def test_a_projection_of_several_formats(files):
    files = files(q4_k_m, **WIDE)
    plain, decoder = load(files, None), load(files, "auto")
    for name, kinds in formats(decoder).items():
        is_better = name == "head" or name.endswith(("down", "attention.output"))
        whole = ["Q6_K"] if is_better else ["Q4_K"]
        assert kinds == (["Q4_K", "Q6_K"] if "qkv" in name else whole), name
        assert torch.equal(values(projections(decoder)[name]), projections(plain)[name].weight)


def test_what_is_partly_in_no_blocks_runs_in_the_dtype(files):
    decoder = load(files(lambda name: "F16" if "attn_k" in name else "Q4_1"), "auto")
    for name, kinds in formats(decoder).items():
        assert kinds == ([] if "qkv" in name else ["Q4_1"]), name


def test_parts_end_with_whole_panels(files):
    """Two heads of 12 are 24 rows; two of 16 are two panels."""
    mixed = lambda name: "Q8_0" if "attn_v" in name else "Q4_1"  # noqa: E731
    shape = {"hidden_size": 96, "head_dim": 24, "num_attention_heads": 4, "num_key_value_heads": 1}
    assert formats(load(files(mixed, **shape), "auto"))["layers.0.attention.qkv"] == []
    assert formats(load(files(mixed), "auto"))["layers.0.attention.qkv"] == ["Q4_1", "Q8_0"]


def test_a_rank_takes_its_part_of_the_blocks(files):
    """What would end within a block is decoded."""
    files = files("Q4_K", **(WIDE | {"intermediate_size": 768}))
    config = load_config(files)
    for rank in (Rank(0, 2), Rank(1, 2)):
        decoder = load_model(
            files, config, torch.float32, "cpu", NativeBackend(), "auto", rank, None
        )
        for name, kinds in formats(decoder).items():
            splits_blocks = "output" in name or "down" in name  # 128 and 384 columns on each
            assert kinds == ([] if splits_blocks else ["Q4_K"]), name
        assert decoder.embedding.weight is not None


@pytest.mark.parametrize("kind", ["Q4_K", q4_k_m])
def test_sizes_are_told_before_anything_is_loaded(files, kind):
    files = files(kind, **(WIDE | {"vocab_size": 2000}))
    config, family = load_config(files), family_of("llama")
    parts = planned_parts(files, config, family, "auto")
    planned = weight_bytes(config, torch.bfloat16, parts)
    decoder = load_model(files, config, torch.bfloat16, "cpu", NativeBackend(), "auto")
    decoder.pack_weights()
    packed = {b.data_ptr(): b.nbytes for b in decoder.buffers()}
    assert sum(packed.values()) == planned
    in_file = sum(t.data.nbytes for t in read_gguf(files.gguf).tensors.values())
    assert abs(planned / in_file - 1) < 0.1


@pytest.mark.parametrize(("quantization", "inner"), [("int8", "Q8_0"), ("int4", "Q4_1")])
def test_any_model_is_rounded_while_loading(save, tiny_llama, quantization, inner):
    files = resolve_model(save(tiny_llama(**SHAPE)))
    plain, decoder = load(files, None), load(files, quantization)
    for name, linear in projections(decoder).items():
        block_format = "Q8_0" if name == "head" else inner
        assert linear.block_formats == [block_format]
        weight = projections(plain)[name].weight.numpy()
        kind = Kind[block_format]
        assert torch.equal(
            values(linear), torch.from_numpy(dequantize(quantize(weight, kind), kind))
        )
    assert not any(formats(load(files, "auto")).values())


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
