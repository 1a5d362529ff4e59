"""Quantised safetensors: each format's arithmetic, written out in NumPy, gives the numbers that are
loaded; what blocks can hold stays in blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file

from paged_stream import LLM, SamplingParams
from paged_stream.attention.native import NativeBackend
from paged_stream.info import describe
from paged_stream.layers.linear import Linear
from paged_stream.models.formats.resolve import resolve_model
from paged_stream.models.loader import load_config, load_model
from tests.models.checkpoints import assert_same

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2}
FP8_MAX = 448.0


def words(values, bits, axis):
    """Pack unsigned integers into 32-bit words along an axis, the first in the lowest bits."""
    per = 32 // bits
    values = np.moveaxis(values.astype(np.uint32), axis, -1)
    pieces = values.reshape(*values.shape[:-1], -1, per)
    packed = np.zeros(pieces.shape[:-1], np.uint32)
    for i in range(per):
        packed |= pieces[..., i] << np.uint32(bits * i)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(packed, -1, axis)).view(np.int32))


def grouped(rng, out, size, bits, width, symmetric):
    """Codes [out, size], and zeros and scales [out, groups], of a matrix of usual size."""
    codes = rng.integers(0, 2**bits, (out, size))
    zeros = rng.integers(1, 2**bits, (out, size // width))
    if symmetric:
        zeros[:] = 2 ** (bits - 1)
    scales = (rng.uniform(0.5, 2, zeros.shape) * 0.3 / 2**bits).astype(np.float16)
    return codes, zeros, scales


def affine(codes, zeros, scales, groups):
    """(code - zero) * scale, each column with those of its group."""
    values = codes.astype(np.float32) - zeros[:, groups].astype(np.float32)
    return values * scales[:, groups].astype(np.float32)


def in_order(size, width):
    return np.arange(size) // width


class AWQ:
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}
    blocks: str | None = "Q4_Z"

    def __init__(self, rng, out, size):
        codes, zeros, scales = grouped(rng, out, size, 4, 64, False)
        order = [0, 2, 4, 6, 1, 3, 5, 7]  # which column of eight is in which four bits

        def pack(values):  # [rows, out]
            shuffled = values.reshape(len(values), -1, 8)[:, :, order].reshape(values.shape)
            return words(shuffled, 4, 1)

        self.tensors = {
            "qweight": pack(codes.T),
            "qzeros": pack(zeros.T),
            "scales": torch.from_numpy(scales.T.copy()),
        }
        self.weight = affine(codes, zeros, scales, in_order(size, 64))


class GPTQ:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    blocks: str | None = "Q4_0"
    bits, width, symmetric, acts, added = 4, 32, True, False, 1

    def __init__(self, rng, out, size):
        codes, zeros, scales = grouped(rng, out, size, self.bits, self.width, self.symmetric)
        groups = in_order(size, self.width)
        if self.acts:
            groups = rng.permutation(groups)
        self.tensors = {
            "qweight": words(codes.T, self.bits, 0),
            "qzeros": words(zeros.T - self.added, self.bits, 1),
            "scales": torch.from_numpy(scales.T.copy()),
            "g_idx": torch.from_numpy(groups.astype(np.int32)),
            "bias": torch.zeros(out, dtype=torch.float16),
        }
        self.weight = affine(codes, zeros, scales, groups)


class GPTQZeros(GPTQ):
    config = GPTQ.config | {"sym": False}
    blocks, symmetric = "Q4_Z", False


class GPTQ2(GPTQZeros):
    config = GPTQ.config | {"checkpoint_format": "gptq_v2"}
    added = 0


class GPTQActs(GPTQ):
    config = GPTQ.config | {"desc_act": True}
    blocks, acts = None, True


class GPTQ8(GPTQ):
    config = GPTQ.config | {"bits": 8, "group_size": 64}
    blocks: str | None = "Q8_0"
    bits, width = 8, 64


class GPTQ8Zeros(GPTQ8):
    blocks, symmetric = None, False


class GPTQNarrow(GPTQ):
    """Groups of 16 columns are no blocks of 32."""

    config = GPTQ.config | {"group_size": 16}
    blocks, width = None, 16


def compressed(kind, **weights):
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }


class W4A16:
    config = compressed("pack-quantized", num_bits=4, type="int", symmetric=True, group_size=64)
    blocks: str | None = "Q4_0"
    bits, symmetric = 4, True

    def __init__(self, rng, out, size):
        codes, zeros, scales = grouped(rng, out, size, self.bits, 64, self.symmetric)
        scales = torch.from_numpy(scales).bfloat16()  # whose numbers float16 has, too
        self.tensors = {
            "weight_packed": words(codes, self.bits, 1),
            "weight_scale": scales,
            "weight_shape": torch.tensor([out, size]),
        }
        if not self.symmetric:
            self.tensors["weight_zero_point"] = words(zeros, self.bits, 0)
        self.weight = affine(codes, zeros, scales.float().numpy(), in_order(size, 64))


class W4A16Zeros(W4A16):
    config = compressed("pack-quantized", num_bits=4, type="int", symmetric=False, group_size=64)
    blocks, symmetric = "Q4_Z", False


class W8A16(W4A16):
    config = compressed("pack-quantized", num_bits=8, type="int", symmetric=True, group_size=64)
    blocks, bits = "Q8_0", 8


class W8A8:
    config = compressed("int-quantized", num_bits=8, type="int", symmetric=True)
    blocks: str | None = "Q8_0"

    def __init__(self, rng, out, size):
        codes = rng.integers(-128, 128, (out, size))
        scales = torch.from_numpy(rng.uniform(0.5, 2, (out, 1)) / 800).bfloat16()
        self.tensors = {
            "weight": torch.from_numpy(codes).to(torch.int8),
            "weight_scale": scales,
            "input_scale": torch.ones(1),
        }
        self.weight = codes.astype(np.float32) * scales.float().numpy()


class W8A8Wide(W8A8):
    """Scales that float16 does not have."""

    blocks = None

    def __init__(self, rng, out, size):
        super().__init__(rng, out, size)
        scales = torch.from_numpy(rng.uniform(0.5, 2, (out, 1)) / 800).float()
        self.tensors["weight_scale"] = scales
        self.weight = self.tensors["weight"].float().numpy() * scales.numpy()


def fp8(rng, out, size):
    values = torch.from_numpy(rng.normal(0, 100, (out, size))).clamp(-FP8_MAX, FP8_MAX)
    return values.float().to(torch.float8_e4m3fn)


class FP8Channels:
    config = compressed("float-quantized", num_bits=8, type="float", strategy="channel")
    blocks = None

    def __init__(self, rng, out, size):
        numbers = fp8(rng, out, size)
        scales = torch.from_numpy(rng.uniform(0.5, 2, (out, 1)) / 1000).bfloat16()
        self.tensors = {"weight": numbers, "weight_scale": scales}
        self.weight = numbers.float().numpy() * scales.float().numpy()


class FP8Tensor(FP8Channels):
    config = {"quant_method": "fp8", "activation_scheme": "static"}

    def __init__(self, rng, out, size):
        numbers, scale = fp8(rng, out, size), torch.tensor(0.0017)
        self.tensors = {"weight": numbers, "weight_scale": scale, "input_scale": torch.ones(())}
        self.weight = numbers.float().numpy() * scale.numpy()


class FP8Blocks(FP8Channels):
    """Blocks that do not divide the matrix."""

    config = {"quant_method": "fp8", "weight_block_size": [48, 96]}

    def __init__(self, rng, out, size):
        numbers = fp8(rng, out, size)
        shape = -(-out // 48), -(-size // 96)
        scales = (rng.uniform(0.5, 2, shape) / 1000).astype(np.float32)
        self.tensors = {"weight": numbers, "weight_scale_inv": torch.from_numpy(scales)}
        factors = scales[np.arange(out)[:, None] // 48, np.arange(size)[None] // 96]
        self.weight = numbers.float().numpy() * factors


class NF4:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    blocks = None
    nested = True

    def __init__(self, rng, out, size):
        indices = rng.integers(0, 16, out * size)
        table = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
        count = out * size // 64
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [out, size]}
        packed = (indices[::2] << 4 | indices[1::2]).astype(np.uint8)
        tensors = {"": packed[:, None], ".quant_map": table}
        if self.nested:
            absmax = rng.integers(0, 256, count).astype(np.uint8)
            steps = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
            outer = rng.uniform(0.05, 0.1, -(-count // 256)).astype(np.float32)
            state |= {"nested_blocksize": 256, "nested_offset": 0.25, "nested_dtype": "float32"}
            tensors |= {".absmax": absmax, ".nested_absmax": outer, ".nested_quant_map": steps}
            factors = steps[absmax] * outer[np.arange(count) // 256] + np.float32(0.25)
        else:
            factors = rng.uniform(0.1, 0.5, count).astype(np.float32)
            tensors[".absmax"] = factors
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        tensors[".quant_state.bitsandbytes__nf4"] = text.copy()
        self.tensors = {f"weight{k}": torch.from_numpy(v) for k, v in tensors.items()}
        weight = table[indices] * factors[np.arange(out * size) // 64]
        self.weight = weight.reshape(out, size)


class NF4Plain(NF4):
    nested = False


FORMATS = [AWQ, GPTQ, GPTQZeros, GPTQ2, GPTQActs, GPTQ8, GPTQ8Zeros, GPTQNarrow, W4A16] + [
    *(W4A16Zeros, W8A16, W8A8, W8A8Wide, FP8Channels, FP8Tensor, FP8Blocks, NF4, NF4Plain)
]


@pytest.fixture
def quantized(tiny_llama, save):
    """A folder in a format, and one with the float32 weights that it stands for."""

    def make(kind, **shape):
        model = tiny_llama(**(SHAPE | shape))
        folder, plain = save(model), save(model)
        rng = np.random.default_rng(0)
        tensors = load_file(folder / "model.safetensors")
        expected = dict(tensors)
        for name in sorted(tensors):
            if name.endswith("_proj.weight"):
                matrix = kind(rng, *tensors.pop(name).shape)
                module = name.removesuffix("weight")
                tensors |= {module + end: tensor for end, tensor in matrix.tensors.items()}
                expected[name] = torch.from_numpy(np.ascontiguousarray(matrix.weight))
        save_file(tensors, folder / "model.safetensors")
        save_file(expected, plain / "model.safetensors")
        edit_config(folder, quantization_config=kind.config)
        return folder, plain

    return make


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def load(folder, quantization):
    files = resolve_model(folder)
    return load_model(
        files, load_config(files), torch.float32, "cpu", NativeBackend(), quantization
    )


def blocks_of(decoder):
    return {
        name: linear.block_formats
        for name, linear in decoder.named_modules()
        if isinstance(linear, Linear) and linear.block_formats
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_numbers_are_the_formats(quantized, kind):
    folder, plain = quantized(kind)
    expected = load(plain, None)
    assert_same(load(folder, None), expected)
    decoder = load(folder, "auto")
    found = blocks_of(decoder)
    if kind.blocks is None:
        assert not found
        assert_same(decoder, expected)
        return
    assert set(map(tuple, found.values())) == {(kind.blocks,)} and len(found) == 8
    for name in found:
        (part,) = decoder.get_submodule(name).parts()
        weight = expected.get_submodule(name).weight
        assert torch.equal(part.values(), weight), name
        if kind.blocks != "Q4_Z":
            oracle = dequantize(part.data.numpy(), Kind[kind.blocks])
            assert torch.equal(torch.from_numpy(oracle), weight), name


@pytest.mark.parametrize("kind", [AWQ, GPTQ, W8A8, NF4])
def test_it_generates_what_the_plain_weights_do(quantized, kind):
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    texts = []
    for folder in quantized(kind):
        llm = LLM(str(folder), kv_cache_memory_bytes="4MiB", window_size=24)
        texts.append(llm.generate([[5, 8, 1, 77]], params, use_tqdm=False)[0].outputs[0].token_ids)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (AWQ, ", 8 of 9 projections in the file's own blocks (Q4_Z), the rest in float32"),
        (NF4, " in float32"),
    ],
)
def test_info_says_which(quantized, kind, told):
    folder, _ = quantized(kind)
    (line,) = (x for x in describe(str(folder)).splitlines() if x.startswith("weights"))
    assert line.endswith(told), line


def test_autogptq_kept_its_settings_in_a_file_of_its_own(quantized):
    folder, plain = quantized(GPTQ)
    edit_config(folder, quantization_config=None)
    fields = {key: value for key, value in GPTQ.config.items() if key != "quant_method"}
    (folder / "quantize_config.json").write_text(json.dumps(fields))
    assert_same(load(folder, None), load(plain, None))


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"quant_method": "mxfp4"}, ["quant_method=mxfp4 is not supported; supported: awq, gptq"]),
        ({"quant_method": 5}, ["quant_method=5 is not supported"]),
        (
            {"quant_method": "compressed-tensors", "format": "marlin-24"},
            ["format=marlin-24 is not"],
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, ["bitsandbytes is not supported"]),
        (GPTQ.config | {"bits": 3}, ["quantization_config.bits must be 2 or 4 or 8, got 3"]),
        (AWQ.config | {"version": "gemv"}, ["version must be gemm, got gemv"]),
        ({"quant_method": "fp8", "weight_block_size": 7}, ["weight_block_size must be two sizes"]),
        (
            compressed("pack-quantized") | {"config_groups": []},
            ["config_groups must have the same weights in all groups"],
        ),
    ],
)
def test_what_is_not_supported_is_named(quantized, fields, parts):
    kinds = {"gptq": GPTQ, "awq": AWQ, "fp8": FP8Blocks, "compressed-tensors": W4A16}
    folder, _ = quantized(kinds.get(fields["quant_method"], GPTQ))
    edit_config(folder, quantization_config=fields)
    with pytest.raises(ValueError) as error:
        load(folder, "auto")
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        (AWQ, "scales", lambda t: t[:, :-1].contiguous()),
        (AWQ, "qzeros", lambda t: t[:, :-1].contiguous()),
        (AWQ, "scales", None),
        (GPTQ, "g_idx", lambda t: t + 1000),
        (GPTQ, "qweight", lambda t: t[0].contiguous()),
        (W4A16, "weight_scale", lambda t: t[:3].contiguous()),
        (FP8Blocks, "weight_scale_inv", lambda t: t[:, :-1].contiguous()),
        (FP8Channels, "weight_scale", None),
        (NF4, "weight.quant_state.bitsandbytes__nf4", lambda t: t[:-2].clone()),
        (NF4, "weight.quant_map", lambda t: t[:9].clone()),
    ],
)
@pytest.mark.parametrize("quantization", [None, "auto"])
def test_damaged_tensors_are_named(quantized, kind, name, change, quantization):
    folder, _ = quantized(kind)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    full = f"model.layers.1.mlp.down_proj.{name}"
    damaged = tensors.pop(full)
    if change is not None:
        tensors[full] = change(damaged)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="model.layers.1.mlp.down_proj"):
        load(folder, quantization)
