"""What a GGUF file says and holds, checked as a whole against the file's length before anything is
read by what it says.

Counts are compared with the bytes that are left before anything is made of them, so a header costs
no more memory than a small multiple of its own size.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from paged_stream.system.short_text import short

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?"} | {
    10: "u8",
    11: "i8",
    12: "f8",
}
_FORMS = {
    name: struct.Struct(f"<{form}")
    for name, form in zip(_NUMBERS.values(), "BbHhIif?Qqd", strict=True)
}
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "I16": "<i2"} | {
    "I32": "<i4",
    "I64": "<i8",
}
_MAX_ITEMS = 1 << 24  # of an array: many times the largest vocabulary
_MAX_NAME_BYTES = 1 << 16
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32
# The least that something takes in the file: a text, an entry of metadata, a tensor's description.
_STRING_BYTES, _ENTRY_BYTES, _TENSOR_BYTES = 8, 8 + 4 + 1, 8 + 4 + 8 + 4 + 8


class GGUFTensor(NamedTuple):
    """One tensor.

    Args:
        kind: its number format, as gguf calls it.
        shape: in numpy's order, the slowest dimension first.
        offset: of its first byte in the file at ``path``.
    """

    kind: str
    shape: list[int]
    path: Path
    offset: int

    @property
    def data(self) -> np.ndarray:
        """What the file holds, read anew: numbers, or for other formats rows of bytes."""
        size, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        num_bytes = math.prod(self.shape) // size * block_bytes
        # Not from the heap, which would keep it when nobody needs it any more.
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            if file.readinto(memory) != num_bytes:
                raise ValueError(f"{self.path} has become shorter; fetch the file again")
        data = np.frombuffer(memory, _DTYPES.get(self.kind, "u1"))
        return data.reshape(*self.shape[:-1], -1)

    def values(self) -> np.ndarray:
        """float32, in its shape."""
        with np.errstate(invalid="ignore", over="ignore"):  # whoever uses them looks at them
            values = dequantize(self.data, GGMLQuantizationType[self.kind])
        return values.astype(np.float32, copy=False).reshape(self.shape)


class GGUFFile(NamedTuple):
    """Metadata by key, and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf(path: Path) -> GGUFFile:
    """Read a file's header, and find its tensors.

    Raises:
        ValueError: it is no GGUF file, or not whole; names the file and what of it is wrong.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        _check_beginning(path, file.read(24))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _Reader(path, content).read()
            except ValueError as error:
                raise ValueError(
                    f"{path} is truncated or damaged: {error}; it has {len(content):,} bytes; "
                    "fetch the file again"
                ) from None


def _check_beginning(path: Path, start: bytes) -> None:
    """Raises ValueError: the file does not begin as GGUF files do."""
    if start[:4] != _MAGIC[: len(start)]:
        hint = ", but a pointer to one in Git LFS" if start.startswith(b"version https://") else ""
        raise ValueError(
            f"{path} is not a GGUF file{hint}: it begins with {start[:16]!r}; fetch the file again"
        )
    if len(start) < 24:
        raise ValueError(
            f"{path} is truncated: it has {len(start)} bytes, fewer than a GGUF header; fetch the "
            "file again"
        )
    version = int.from_bytes(start[4:8], "little")
    if version not in _VERSIONS:
        raise ValueError(
            f"{path} has version {version} of GGUF, or is of a big-endian machine; versions "
            f"{' and '.join(map(str, _VERSIONS))} can be read"
        )


class _Reader:
    """Goes through a file from its version on; every method raises ValueError for what is wrong."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._at = 8  # behind magic and version

    def read(self) -> GGUFFile:
        num_tensors, num_entries = self._number("u8"), self._number("u8")
        self._expect(num_entries, "metadata", _ENTRY_BYTES)
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self._name("a key", metadata)
            metadata[key] = self._within(key, lambda: self._value(self._number("u4")))
        self._expect(num_tensors, "tensors", _TENSOR_BYTES)
        described: dict[str, tuple[GGMLQuantizationType, list[int], int]] = {}
        for _ in range(num_tensors):
            name = self._name("the name of a tensor", described)
            described[name] = self._within(name, self._description)
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 8 or alignment % 8:
            raise ValueError(f"general.alignment is {short(alignment)}, no multiple of 8")
        return GGUFFile(metadata, self._place(described, alignment))

    def _place(
        self, described: dict[str, tuple[GGMLQuantizationType, list[int], int]], alignment: int
    ) -> dict[str, GGUFTensor]:
        """Find every tensor's bytes, which are aligned, its own, and in the file."""
        start = -(-self._at // alignment) * alignment
        end, before, tensors = start, "the header", {}
        for name, (kind, shape, offset) in sorted(described.items(), key=lambda item: item[1][2]):
            where = f"tensor {short(name)} at {offset}"
            if offset % alignment:
                raise ValueError(f"{where} is not aligned to {alignment} bytes")
            if start + offset < end:
                raise ValueError(f"{where} overlaps {before}")
            size, bytes_per_block = GGML_QUANT_SIZES[kind]
            rows, before = math.prod(shape[:-1]), f"tensor {short(name)}"
            row_bytes = shape[-1] // size * bytes_per_block
            end = start + offset + rows * row_bytes
            if end > len(self._content):
                raise ValueError(f"{where} has {rows * row_bytes:,} bytes and ends behind the file")
            tensors[name] = GGUFTensor(kind.name, shape, self._path, start + offset)
        return {name: tensors[name] for name in described}

    def _description(self) -> tuple[GGMLQuantizationType, list[int], int]:
        """Format, shape and offset of a tensor."""
        num_dimensions = self._number("u4")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"has {num_dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}")
        shape = [self._number("u8") for _ in range(num_dimensions)][::-1]
        number = self._number("u4")
        try:
            kind = GGMLQuantizationType(number)
            size, _ = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise ValueError(f"has the number format {number}, which does not exist") from None
        if 0 in shape or shape[-1] % size:
            raise ValueError(
                f"has shape {shape}, which {kind.name} in blocks of {size} cannot have"
            )
        return kind, shape, self._number("u8")

    def _within(self, name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except ValueError as error:
            raise ValueError(f"{short(name)}: {error}") from None

    def _name(self, what: str, known: dict[str, Any]) -> str:
        name = self._string(_MAX_NAME_BYTES)
        if name in known:
            raise ValueError(f"{what} is there twice: {short(name)}")
        return name

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _NUMBERS:
            raise ValueError(f"has the type {kind}, which does not exist")
        return self._number(_NUMBERS[kind])

    def _array(self) -> list[Any]:
        kind, count = self._number("u4"), self._number("u8")
        if kind != _STRING and kind not in _NUMBERS:
            raise ValueError(f"has elements of type {kind}, which no array can have")
        is_text = kind == _STRING
        item_bytes = _STRING_BYTES if is_text else np.dtype(_NUMBERS[kind]).itemsize
        self._expect(count, "elements", item_bytes)
        if count > _MAX_ITEMS:
            raise ValueError(f"has {count:,} elements, more than {_MAX_ITEMS:,}")
        if is_text:
            return [self._string() for _ in range(count)]
        values: list[Any] = np.frombuffer(
            self._take(count * item_bytes), np.dtype(_NUMBERS[kind]).newbyteorder("<")
        ).tolist()
        return values

    def _string(self, limit: int | None = None) -> str:
        size = self._number("u8")
        if limit is not None and size > limit:
            raise ValueError(f"a name has {size:,} bytes, more than {limit:,}")
        try:
            return self._take(size).decode()
        except UnicodeDecodeError:
            raise ValueError("has a text that is not UTF-8") from None

    def _number(self, kind: str) -> Any:
        form = _FORMS[kind]
        return form.unpack(self._take(form.size))[0]

    def _take(self, size: int) -> bytes:
        if size > len(self._content) - self._at:
            raise ValueError(f"{size:,} bytes are missing at {self._at:,}")
        self._at += size
        return self._content[self._at - size : self._at]

    def _expect(self, count: int, what: str, least: int) -> None:
        """Refuse a count of things of ``least`` bytes for which there is no room."""
        left = len(self._content) - self._at
        if count * least > left:
            raise ValueError(f"{count:,} {what} cannot be in the {left:,} bytes that are left")
