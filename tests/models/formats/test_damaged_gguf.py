"""GGUF files are checked as a whole before anything is read by what they say."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from paged_stream.models.formats.gguf_file import read_gguf
from paged_stream.models.formats.resolve import resolve_model
from tests.models.gguf_files import write_gguf

F32, Q8_0, STRING, ARRAY, UINT32 = 0, 8, 8, 9, 4


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: list[int], kind: int = F32, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def write(
    path: Path,
    entries: list[bytes],
    tensors: list[bytes],
    *,
    data: int = 256,
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
    version: int = 3,
) -> Path:
    """Write a file of these parts, and so many bytes behind the header."""
    counts = counts or (len(tensors), len(entries))
    header = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries + tensors)
    path.write_bytes(header + bytes(-len(header) % alignment) + bytes(range(256))[:data])
    return path


def test_what_is_read(tmp_path):
    entries = [
        entry("general.alignment", UINT32, struct.pack("<I", 64)),
        entry("name", STRING, text("grün")),
        entry("flags", ARRAY, struct.pack("<IQ", 7, 2) + b"\1\0"),
        entry("words", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("")),
        entry("small", 1, b"\xff"),
        entry("real", 6, struct.pack("<f", 0.5)),
    ]
    tensors = [tensor("b", [2, 3], offset=64), tensor("a", [4]), tensor("q", [1, 32], Q8_0, 128)]
    file = read_gguf(write(tmp_path / "m.gguf", entries, tensors, alignment=64))
    assert file.metadata == {
        "general.alignment": 64,
        "name": "grün",
        "flags": [True, False],
        "words": ["a", ""],
        "small": -1,
        "real": 0.5,
    }
    content = np.arange(256, dtype=np.uint8)
    assert list(file.tensors) == ["b", "a", "q"]
    assert file.tensors["a"].values().tobytes() == content[:16].tobytes()
    assert file.tensors["b"].data.tobytes() == content[64:88].tobytes()
    assert (file.tensors["b"].kind, file.tensors["b"].shape) == ("F32", [2, 3])
    assert file.tensors["q"].data.tobytes() == content[128:162].tobytes()
    assert file.tensors["q"].values().shape == (1, 32)


def strings(count: int) -> bytes:
    return entry("tokens", ARRAY, struct.pack("<IQ", STRING, count))


@pytest.mark.parametrize(
    ("entries", "tensors", "options", "message"),
    [
        # Counts
        ([strings(2**32)], [], {}, "tokens: 4,294,967,296 elements cannot be in the"),
        ([strings(2**64 - 1)], [], {}, "tokens: 18,446,744,073,709,551,615 elements cannot be"),
        ([], [], {"counts": (2**40, 0)}, "1,099,511,627,776 tensors cannot be in the 264 bytes"),
        ([], [], {"counts": (0, 2**63)}, "metadata cannot be in the 2"),
        ([entry("k", STRING, struct.pack("<Q", 2**40))], [], {}, "k: 1,099,511,627,776 bytes are"),
        ([entry("k", ARRAY, struct.pack("<IQ", 4, 2**30))], [], {}, "k: 1,073,741,824 elements"),
        # Types
        ([entry("k", 13, b"")], [], {}, "k: has the type 13, which does not exist"),
        ([entry("k", ARRAY, struct.pack("<IQ", 9, 1))], [], {}, "elements of type 9, which no"),
        ([entry("k\x1b", STRING, text(b"\xff"))], [], {}, "k\ufffd: has a text that is not UTF-8"),
        ([], [tensor("t", [4], 4)], {}, "t: has the number format 4, which does not exist"),
        ([], [tensor("t", [4], 999)], {}, "t: has the number format 999"),
        # Shapes
        ([], [tensor("t", [2, 33], Q8_0)], {}, "t: has shape [2, 33], which Q8_0 in blocks of 32"),
        ([], [tensor("t", [0, 4])], {}, "t: has shape [0, 4], which F32"),
        ([], [tensor("t", [])], {}, "t: has 0 dimensions, not 1 to 4"),
        ([], [tensor("t", [1] * 5)], {}, "t: has 5 dimensions"),
        # Places
        ([], [tensor("t", [65])], {}, "tensor t at 0 has 260 bytes and ends behind the file"),
        ([], [tensor("t", [2**33, 2**33])], {}, "and ends behind the file"),
        ([], [tensor("t", [4], offset=2**63)], {}, "and ends behind the file"),
        ([], [tensor("t", [4], offset=4)], {}, "tensor t at 4 is not aligned to 32 bytes"),
        ([], [tensor("t", [9]), tensor("u", [4], offset=32)], {}, "u at 32 overlaps tensor t"),
        ([], [tensor("t", [4]), tensor("u", [4])], {}, "tensor u at 0 overlaps tensor t"),
        ([], [tensor("t", [4]), tensor("t", [4], offset=32)], {}, "a tensor is there twice: t"),
        ([entry("k", 1, b"\0")] * 2, [], {}, "a key is there twice: k"),
        ([entry("general.alignment", UINT32, bytes(4))], [], {}, "general.alignment is 0, no mult"),
        ([entry("general.alignment", STRING, text("8"))], [], {}, "general.alignment is 8, no mu"),
        ([], [], {"version": 1}, "has version 1 of GGUF, or is of a big-endian machine"),
        ([], [], {"version": 3 << 24}, "big-endian"),
    ],
)
def test_what_is_refused(tmp_path, entries, tensors, options, message):
    path = write(tmp_path / "m.gguf", entries, tensors, **options)
    with pytest.raises(ValueError) as error:
        resolve_model(path, cache_dir=tmp_path / "cache")
    told = str(error.value)
    assert told.startswith(str(path)) and message in told
    assert told.isprintable() and len(told) < 500


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"block_count": 2**31}, "num_hidden_layers must be an integer in [1, 4096], got 21474836"),
        ({"block_count": "2"}, "llama.block_count must be an integer >= 1, got 2"),
        ({"embedding_length": 2**31}, "hidden_size must be an integer in [1, 4194304], got 2147"),
        ({"embedding_length": 32}, "token_embd.weight has shape [300, 64], expected [300, 32]"),
        ({"attention__head_count": 0}, "llama.attention.head_count must be an integer >= 1, got 0"),
        ({"context_length": [1]}, "llama.context_length must be an integer >= 1, got [1]"),
        (
            {"attention__layer_norm_rms_epsilon": float("nan")},
            "rms_norm_eps must be below 2^63 and",
        ),
        ({"rope__freq_base": float("inf")}, "rope_theta must be below 2^63 and finite, got inf"),
        ({"rope__freq_base": 0.0}, "rope_parameters (rope_theta, factor and the like) must give"),
    ],
)
def test_metadata_that_no_model_has(tiny_llama, tmp_path, metadata, message):
    shape = {"hidden_size": 64, "intermediate_size": 96}
    path = write_gguf(tiny_llama(**shape), tmp_path / "tiny.gguf", **metadata)
    with pytest.raises(ValueError) as error:
        resolve_model(path, cache_dir=tmp_path / "cache")
    told = str(error.value)
    assert told.startswith(f"{path}: cannot convert this GGUF file: ") and message in told
    assert told.isprintable() and len(told) < 2500
