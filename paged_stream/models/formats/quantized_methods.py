"""How checkpoints in safetensors are quantised: which tensors make a matrix, and how. What a matrix
is made of is read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from paged_stream.models.formats.integer_matrix import IntegerMatrix, unpacked
from paged_stream.models.formats.nf4 import NF4Matrix
from paged_stream.models.formats.scaled_matrix import ScaledMatrix
from paged_stream.models.formats.shards import Shard
from paged_stream.system.short_text import short

Matrix = IntegerMatrix | ScaledMatrix | NF4Matrix


class Tensors:
    """The tensors of a checkpoint by their names."""

    def __init__(self, shards: list[Shard]) -> None:
        self._places = {name: shard for shard in shards for name in shard.names}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def names(self) -> list[str]:
        return list(self._places)

    def describe(self, name: str) -> tuple[list[int], str]:
        """Shape and dtype.

        Raises:
            ValueError: there is no such tensor.
        """
        return self._place(name).describe(name)

    def shape(self, name: str) -> list[int]:
        """Rows and columns.

        Raises:
            ValueError: there is no such tensor, or it is no matrix.
        """
        shape, _ = self.describe(name)
        if len(shape) != 2:
            raise ValueError(f"tensor {short(name)} has shape {shape}, which is no matrix")
        return shape

    def read(self, name: str) -> torch.Tensor:
        """As `describe`."""
        return self._place(name).read(name)

    def _place(self, name: str) -> Shard:
        if name not in self._places:
            raise ValueError(f"tensor {short(name)} is missing, which quantization_config asks for")
        return self._places[name]


class Method(NamedTuple):
    """A kind of checkpoint.

    Args:
        mark: what the name of one tensor of every quantised matrix ends with.
        others: ends of the names of the others.
        matrix: gives the matrix of a module, by its name and the fields of quantization_config.
        is_quantized: whether a tensor with such a name and dtype is one.
    """

    mark: str
    others: tuple[str, ...]
    matrix: Callable[[Tensors, str, Mapping[str, Any]], Matrix]
    is_quantized: Callable[[str], bool] = lambda dtype: True


def _bits(config: Mapping[str, Any], allowed: tuple[int, ...], name: str = "bits") -> int:
    bits = config.get(name)
    if type(bits) is not int or bits not in allowed:
        choice = " or ".join(map(str, allowed))
        raise ValueError(f"quantization_config.{name} must be {choice}, got {short(bits)}")
    return bits


# AWQ puts column 8j + _AWQ_ORDER[i] into bits 4i of word j.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _in_awq_order(words: torch.Tensor) -> torch.Tensor:
    columns = unpacked(words, 4, 1).unflatten(1, (-1, 8))
    return columns[:, :, list(map(_AWQ_ORDER.index, range(8)))].flatten(1)


def _awq(tensors: Tensors, module: str, config: Mapping[str, Any]) -> IntegerMatrix:
    _bits(config, (4,))
    if config.get("version", "gemm") != "gemm":
        raise ValueError(
            f"quantization_config.version must be gemm, got {short(config['version'])}"
        )
    in_features, words = tensors.shape(f"{module}.qweight")
    read = tensors.read

    def zeros() -> torch.Tensor:
        if f"{module}.qzeros" not in tensors:
            return torch.full((1, 1), 8)
        return _in_awq_order(read(f"{module}.qzeros")).T

    return IntegerMatrix(
        shape=[8 * words, in_features],
        bits=4,
        read_codes=lambda: _in_awq_order(read(f"{module}.qweight")).T.contiguous(),
        read_zeros=zeros,
        read_scales=lambda: read(f"{module}.scales").T,
    )


def _gptq(tensors: Tensors, module: str, config: Mapping[str, Any]) -> IntegerMatrix:
    bits = _bits(config, (2, 4, 8))
    words, out_features = tensors.shape(f"{module}.qweight")
    read = tensors.read
    # The first version stores zero points minus one.
    added = 0 if config.get("checkpoint_format") == "gptq_v2" else 1

    def zeros() -> torch.Tensor:
        return unpacked(read(f"{module}.qzeros"), bits, 1).T.int() + added

    has_groups = f"{module}.g_idx" in tensors
    return IntegerMatrix(
        shape=[out_features, 32 // bits * words],
        bits=bits,
        read_codes=lambda: unpacked(read(f"{module}.qweight"), bits, 0).T.contiguous(),
        read_zeros=zeros,
        read_scales=lambda: read(f"{module}.scales").T,
        read_groups=(lambda: read(f"{module}.g_idx").long()) if has_groups else None,
    )


def _scheme(module: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How compressed-tensors says that weights are: that of all groups, which must be the same."""
    groups = config.get("config_groups")
    schemes = [g.get("weights") for g in groups.values()] if isinstance(groups, dict) else []
    if not schemes or any(each != schemes[0] or not isinstance(each, dict) for each in schemes):
        raise ValueError(
            "quantization_config.config_groups must have the same weights in all groups"
        )
    scheme: Mapping[str, Any] = schemes[0]
    return scheme


def _packed_integers(tensors: Tensors, module: str, config: Mapping[str, Any]) -> IntegerMatrix:
    bits = _bits(_scheme(module, config), (4, 8), "num_bits")
    read, middle = tensors.read, 1 << (bits - 1)
    out_features, words = tensors.shape(f"{module}.weight_packed")
    in_features = 32 // bits * words
    if f"{module}.weight_shape" in tensors:  # the last word may be partly empty
        in_features = int(read(f"{module}.weight_shape")[1])

    def zeros() -> torch.Tensor:
        name = f"{module}.weight_zero_point"
        if name not in tensors:
            return torch.full((1, 1), middle)
        stored = read(name)
        if stored.dtype == torch.int32:  # words along the rows
            return unpacked(stored, bits, 0)[:out_features].int()
        return stored.int() + middle

    def codes() -> torch.Tensor:
        packed = unpacked(read(f"{module}.weight_packed"), bits, 1)
        return packed[:, :in_features].contiguous()

    has_groups = f"{module}.weight_g_idx" in tensors
    return IntegerMatrix(
        shape=[out_features, in_features],
        bits=bits,
        read_codes=codes,
        read_zeros=zeros,
        read_scales=lambda: read(f"{module}.weight_scale"),
        read_groups=(lambda: read(f"{module}.weight_g_idx").long()) if has_groups else None,
    )


def _plain_integers(tensors: Tensors, module: str, config: Mapping[str, Any]) -> IntegerMatrix:
    read, (out_features, in_features) = tensors.read, tensors.shape(f"{module}.weight")

    def scales() -> torch.Tensor:
        stored = read(f"{module}.weight_scale").view(-1, 1)
        return stored.expand(out_features, -1)

    def zeros() -> torch.Tensor:
        name = f"{module}.weight_zero_point"
        stored = read(name).int().view(-1, 1) if name in tensors else torch.zeros(1, 1)
        return stored.int() + 128

    return IntegerMatrix(
        shape=[out_features, in_features],
        bits=8,
        read_codes=lambda: read(f"{module}.weight").view(torch.uint8) ^ 0x80,
        read_zeros=zeros,
        read_scales=scales,
    )


def _scaled(tensors: Tensors, module: str, config: Mapping[str, Any], end: str) -> ScaledMatrix:
    block = config.get("weight_block_size")
    if block is not None:
        sizes = isinstance(block, list) and [type(each) is int and each > 0 for each in block]
        if sizes != [True, True]:
            raise ValueError(
                f"quantization_config.weight_block_size must be two sizes, got {short(block)}"
            )
    return ScaledMatrix(
        shape=tensors.shape(f"{module}.weight"),
        read_numbers=lambda: tensors.read(f"{module}.weight"),
        read_scales=lambda: tensors.read(f"{module}{end}"),
        block=tuple(block) if block else None,
    )


def _nf4(tensors: Tensors, module: str, config: Mapping[str, Any]) -> NF4Matrix:
    kind = config.get("bnb_4bit_quant_type", "fp4")
    return NF4Matrix(tensors.read, tensors.__contains__, f"{module}.weight", kind)


_FP8 = ("F8_E4M3", "float8_e4m3fn")
_SCALE_INV = Method(
    ".weight",
    (".weight_scale_inv",),
    partial(_scaled, end=".weight_scale_inv"),
    _FP8.__contains__,
)
_SCALE = Method(
    ".weight", (".weight_scale",), partial(_scaled, end=".weight_scale"), _FP8.__contains__
)
_NF4 = Method(
    ".weight",
    (".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map")
    + tuple(f".weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")),
    _nf4,
    ("U8", "uint8").__contains__,
)
_COMPRESSED = {
    "pack-quantized": Method(
        ".weight_packed",
        (".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx"),
        _packed_integers,
    ),
    "int-quantized": Method(
        ".weight",
        (".weight_scale", ".weight_zero_point"),
        _plain_integers,
        ("I8", "int8").__contains__,
    ),
    "float-quantized": _SCALE,
}
_METHODS = {
    "awq": Method(".qweight", (".qzeros", ".scales"), _awq),
    "gptq": Method(".qweight", (".qzeros", ".scales", ".g_idx"), _gptq),
}


def method_of(config: Mapping[str, Any], names: list[str]) -> Method:
    """How a checkpoint is quantised.

    Args:
        config: quantization_config of config.json.
        names: of all tensors.

    Raises:
        ValueError: names what is not supported, and what is.
    """
    kind = config.get("quant_method")
    if kind == "compressed-tensors":
        name = config.get("format")
        if name in _COMPRESSED:
            return _COMPRESSED[name]
        raise ValueError(
            f"quantization_config.format={short(name)} is not supported; supported: "
            f"{', '.join(_COMPRESSED)}"
        )
    if kind == "fp8":
        has_inverse = any(name.endswith(".weight_scale_inv") for name in names)
        return _SCALE_INV if has_inverse else _SCALE
    if kind == "bitsandbytes" and config.get("load_in_4bit"):
        return _NF4
    if kind in _METHODS:
        return _METHODS[kind]
    supported = (*_METHODS, "bitsandbytes (4 bits)", "compressed-tensors", "fp8")
    raise ValueError(
        f"quantization_config.quant_method={short(kind)} is not supported; supported: "
        f"{', '.join(supported)}; or pass full-precision safetensors or a .gguf"
    )
