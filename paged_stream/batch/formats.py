"""Formats of input files, by their names and, where a name says nothing, by their first bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

Format = Literal["jsonl", "json", "csv", "tsv", "text", "parquet", "arrow"]
FORMATS = get_args(Format)
# Formats whose rows are read as Arrow tables. The others give a JSON object for each row.
TABLES = ("parquet", "arrow")
_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_CODECS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_MAGIC: tuple[tuple[bytes, Format], ...] = ((b"PAR1", "parquet"), (b"ARROW1", "arrow"))
_CODEC_MAGIC = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bz2"))
HEAD_BYTES = 4096
# Files that lie beside data and are none.
_SIDE = re.compile(
    r"(readme|licen[cs]e|notice|changelog|copying|citation|dataset_infos?|dataset_dict|state)"
    r"(\..*)?|.*\.(crc|md5|sha\d+|sig|idx|lock)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class FileKind:
    """How a file is read.

    Args:
        codec: pyarrow's name of the compression around the file, if any.
    """

    format: Format
    codec: str | None = None

    @property
    def is_table(self) -> bool:
        return self.format in TABLES

    @property
    def can_be_cut(self) -> bool:
        """Whether reading may begin inside the file."""
        return self.codec is None and self.format in ("jsonl", "parquet")

    @property
    def family(self) -> str:
        """What one batch may read together, in words."""
        if self.is_table:
            return "Parquet or Arrow"
        if self.format == "text":
            return "text"
        return "CSV or TSV" if self.format in ("csv", "tsv") else "JSON"


def kind_of(path: str) -> FileKind | None:
    """The kind of file that a name promises; ``None`` if it says nothing."""
    name, codec = codec_of(path)
    return next((FileKind(f, codec) for end, f in _SUFFIXES.items() if name.endswith(end)), None)


def codec_of(path: str) -> tuple[str, str | None]:
    """A name in small letters without the ending of its compression, and the compression."""
    name = path.lower()
    for ending, codec in _CODECS.items():
        if name.endswith(ending):
            return name.removesuffix(ending), codec
    return name, None


def codec_of_bytes(head: bytes) -> str | None:
    """The compression of a file that begins so."""
    return next((codec for magic, codec in _CODEC_MAGIC if head.startswith(magic)), None)


def format_of_bytes(head: bytes) -> Format | None:
    """The format of a file without compression that begins so, if it is one of a few."""
    for magic, format in _MAGIC:
        if head.startswith(magic):
            return format
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "json" if re.match(rb'\{\s*["}]|\[\s*[{\]]', text) else None


def is_side_file(name: str) -> bool:
    """Whether a file of a folder is no data: a README, a checksum."""
    return _SIDE.fullmatch(name) is not None
