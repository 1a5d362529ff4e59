"""K and V as bytes: whatever changes a bit of them is found."""

from __future__ import annotations

import json
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from paged_stream.models.kv_file import read_header, read_tokens, to_pieces
from paged_stream.models.kv_tokens import KVTokens

METADATA = {"format": "a test", "stream": '{"checksum":"00000000", "é": "\\n"}'}


def tokens(count: int = 3, dtype: torch.dtype = torch.float32) -> KVTokens:
    values = torch.arange(2 * 2 * count * 1 * 4).view(2, 2, count, 1, 4)
    return KVTokens(*values.to(dtype))


def written(count: int = 3, dtype: torch.dtype = torch.float32) -> bytes:
    return b"".join(to_pieces(tokens(count, dtype), METADATA))


def read(content: bytes) -> KVTokens:
    buffer = bytearray(content)
    return read_tokens(buffer, read_header(buffer))


CONTENT = written()
HEADER_SIZE = read_header(bytearray(CONTENT)).size


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn],
)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_is_written_is_read(count, dtype):
    content = written(count, dtype)
    for one, other in zip(read(content), tokens(count, dtype), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    header = read_header(bytearray(content))
    assert METADATA.items() <= header.metadata.items()
    assert header.size % 64 == 0


def test_the_safetensors_library_reads_it():
    found = load(CONTENT)
    assert found.keys() == {"key", "value"}
    for name, tensor in tokens()._asdict().items():
        assert torch.equal(found[name], tensor)


def test_checksums_are_as_the_page_says():
    """docs/stream-file.md, with nothing of the package."""
    size = 8 + int.from_bytes(CONTENT[:8], "little")
    metadata = json.loads(CONTENT[8:size])["__metadata__"]
    field = f'"checksum":"{metadata["checksum"]}"'.encode()
    assert CONTENT[:size].count(field) == 1
    zeros = CONTENT[:size].replace(field, b'"checksum":"00000000"')
    assert metadata["checksum"] == f"{zlib.crc32(zeros):08x}"
    key, value = CONTENT[size : size + 96], CONTENT[size + 96 :]
    assert metadata["key_checksum"] == f"{zlib.crc32(key):08x}"
    assert metadata["value_checksum"] == f"{zlib.crc32(value):08x}"


@given(st.integers(0, 8 * len(CONTENT) - 1))
def test_no_bit_can_change(position):
    content = bytearray(CONTENT)
    content[position // 8] ^= 1 << position % 8
    with pytest.raises(ValueError) as caught:
        read(content)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


@given(st.integers(0, len(CONTENT) - 1), st.binary(min_size=1, max_size=9))
def test_no_bytes_can_go_or_come(position, more):
    for content in (CONTENT[:position], CONTENT[:position] + CONTENT[position + 1 :]):
        with pytest.raises(ValueError):
            read(content)
    with pytest.raises(ValueError):
        read(CONTENT[:position] + more + CONTENT[position:])


def test_k_and_v_cannot_be_swapped():
    middle = HEADER_SIZE + (len(CONTENT) - HEADER_SIZE) // 2
    with pytest.raises(ValueError, match="key does not have the checksum"):
        read(CONTENT[:HEADER_SIZE] + CONTENT[middle:] + CONTENT[HEADER_SIZE:middle])


def resealed(change) -> bytes:
    """With another header, and the checksum of that."""
    header = json.loads(CONTENT[8:HEADER_SIZE])
    change(header)
    header["__metadata__"]["checksum"] = "0" * 8
    text = json.dumps(header, separators=(",", ":")).encode()
    start = len(text).to_bytes(8, "little") + text
    seal = f'"checksum":"{zlib.crc32(start):08x}"'.encode()
    return start.replace(b'"checksum":"00000000"', seal) + CONTENT[HEADER_SIZE:]


def test_a_header_can_be_sealed_again():
    assert torch.equal(read(resealed(lambda header: None)).key, tokens().key)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda h: h.pop("key"), "must hold key and value"),
        (lambda h: h.update(more=h["key"]), "must hold key and value"),
        (lambda h: h["key"].update(dtype="F64"), "key must have one of the dtypes"),
        (lambda h: h["key"].update(dtype=["F32"]), "key must have one of the dtypes"),
        (lambda h: h.update(key=[]), "key must have one of the dtypes"),
        (lambda h: h["key"].update(shape=None), "shape of four integers"),
        (lambda h: h["key"].update(shape=[2, 3, 4]), "shape of four integers"),
        (lambda h: h["key"].update(shape=[2, 3.0, 1, 4]), "shape of four integers"),
        (lambda h: h["key"].update(shape=[2, -3, -1, 4]), "from 1 to 1048576"),
        (lambda h: h["key"].update(shape=[0, 3, 1, 4]), "from 1 to 1048576"),
        (lambda h: h["key"].update(shape=[2**20, 0, 2**20, 2**21]), "from 1 to 1048576"),
        (lambda h: h["key"].update(shape=[2**20, 2**200, 2**20, 2**20]), "ends within key"),
        (lambda h: h["key"].update(shape=[2**20, 0, 2**20, 2**20]), "does not have the checksum"),
        (lambda h: h["key"].update(shape=[2, 2, 1, 4]), "key does not have the checksum"),
        (lambda h: h["key"].update(shape=[2, 7, 1, 4]), "ends within key"),
        (lambda h: h["value"].update(shape=[1, 3, 1, 4]), "value does not have the checksum"),
        (lambda h: h["__metadata__"].pop("key_checksum"), "key does not have the checksum"),
    ],
)
def test_headers_that_hold_together_and_lie(change, message):
    with pytest.raises(ValueError, match=message):
        read(resealed(change))


@pytest.mark.parametrize(
    "text, message",
    [
        (b"[" * 100_000, "not JSON"),
        (b"9" * 100_000, "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b"[]", "not an object"),
        (b'{"__metadata__":[]}', "metadata are not texts"),
        (b'{"__metadata__":{"checksum":1}}', "metadata are not texts"),
        (b"{}", "checksum that it names"),
    ],
)
def test_headers_of_other_kinds(text, message):
    with pytest.raises(ValueError, match=message):
        read(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="ends within its header"):
        read((2**64 - 1).to_bytes(8, "little") + text)


def test_other_tensors_of_the_library_are_refused():
    with pytest.raises(ValueError, match="checksum that it names"):
        read(save({"key": torch.zeros(1, 1, 1, 1), "value": torch.zeros(1, 1, 1, 1)}))
