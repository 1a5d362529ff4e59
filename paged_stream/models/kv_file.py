"""K and V as the bytes of a safetensors file that vouches for itself.

Its header has a checksum of each tensor and one of the header. A checksum finds what was damaged,
cut, swapped or mixed up. It is no signature: whoever means to can write a file that holds together.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, NamedTuple

import torch

from paged_stream.models.kv_tokens import KVTokens
from paged_stream.system.whole_files import Piece

_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 64  # bytes, of the first tensor
_LARGEST_SIZE = 1 << 20  # of layers, of KV heads and of a row
_LENGTH_BYTES = 8
_DIGITS = 8
_OPEN = "0" * _DIGITS  # stands for the header's checksum while it is being computed


def checksum(content: Piece) -> str:
    """CRC-32 as eight hexadecimal digits, the same as zlib's, PNG's and gzip's."""
    return f"{zlib.crc32(content):0{_DIGITS}x}"


def to_pieces(tokens: KVTokens, metadata: dict[str, str]) -> list[Piece]:
    """The bytes of a file, in pieces: its header, K, V. K and V are not copied."""
    contents = {name: _bytes_of(tensor) for name, tensor in tokens._asdict().items()}
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tokens._asdict().items():
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    sums = {f"{name}_checksum": checksum(content) for name, content in contents.items()}
    header["__metadata__"] = metadata | sums | {"checksum": _OPEN}
    return [_sealed(header), *contents.values()]


def _sealed(header: dict[str, Any]) -> bytes:
    """The file's beginning, with its checksum."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    start = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return start.replace(_field(_OPEN), _field(checksum(start)))


def _field(digits: str) -> bytes:
    """As it stands in a header. In a string there, its quotation marks would be escaped."""
    return f'"checksum":"{digits}"'.encode()


class Header(NamedTuple):
    """What a file begins with.

    Args:
        metadata: texts by name.
        entries: what is said of each tensor.
        size: bytes of the header, behind which the first tensor begins.
    """

    metadata: dict[str, str]
    entries: dict[str, Any]
    size: int


def read_header(content: bytearray) -> Header:
    """Read a header, whatever wrote it; its checksum is `read_tokens`'s to compare.

    Raises:
        ValueError: it is cut, or not a safetensors header.
    """
    size = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    if size > len(content):
        raise ValueError("it ends within its header")
    try:
        entries = json.loads(content[_LENGTH_BYTES:size])
    except (ValueError, RecursionError):
        raise ValueError("its header is not JSON") from None
    if not isinstance(entries, dict):
        raise ValueError("its header is not an object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not texts")
    return Header(metadata, entries, size)


def read_tokens(content: bytearray, header: Header) -> KVTokens:
    """K and V of what `to_pieces` made. They lie in ``content``, which must not change any more.

    Raises:
        ValueError: something of it is damaged or missing, or it has more than K and V.
    """
    metadata, entries, offset = header
    expected = metadata.get("checksum", "")
    if checksum(content[:offset].replace(_field(expected), _field(_OPEN))) != expected:
        raise ValueError("its header does not have the checksum that it names")
    if entries.keys() != set(KVTokens._fields):
        raise ValueError("it must hold key and value, and nothing else")
    tensors = []
    with memoryview(content) as view:
        for name in KVTokens._fields:
            dtype, shape, num_bytes = _description(name, entries[name])
            with view[offset : offset + num_bytes] as part:
                if len(part) != num_bytes:
                    raise ValueError(f"it ends within {name}")
                if checksum(part) != metadata.get(f"{name}_checksum"):
                    raise ValueError(f"{name} does not have the checksum that the header names")
            tensors.append(_tensor(content, offset, dtype, shape))
            offset += num_bytes
    if offset != len(content):
        raise ValueError(f"{len(content) - offset} bytes follow its tensors")
    return KVTokens(*tensors)


def _description(name: str, entry: Any) -> tuple[torch.dtype, list[int], int]:
    """What a header says of a tensor: dtype, shape and size in bytes."""
    dtype = _DTYPES.get(str(entry.get("dtype"))) if isinstance(entry, dict) else None
    if dtype is None:
        raise ValueError(f"{name} must have one of the dtypes {', '.join(_DTYPES)}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or len(shape) != 4 or any(type(n) is not int for n in shape):
        raise ValueError(f"{name} must have a shape of four integers")
    layers, tokens, heads, row = shape
    if tokens < 0 or not all(1 <= size <= _LARGEST_SIZE for size in (layers, heads, row)):
        raise ValueError(f"{name} must have from 1 to {_LARGEST_SIZE} layers, heads and elements")
    return dtype, shape, layers * tokens * heads * row * dtype.itemsize


def _tensor(content: bytearray, offset: int, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    if count == 0:  # of which torch.frombuffer makes none
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=offset).view(shape)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a tensor on the host."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
