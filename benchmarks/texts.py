"""Long texts to stream: Jane Austen's six novels, in the public domain, from a Debian package.

The package is fetched with the machine's own apt and unpacked, not installed; the decoded novels
stay in ``$XDG_CACHE_HOME/paged_stream/texts``.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "r-cran-janeaustenr"
DATA_FILE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"

NOVELS = (  # in the order of the package's data file
    "emma",
    "mansfieldpark",
    "northangerabbey",
    "persuasion",
    "prideprejudice",
    "sensesensibility",
)


def austen(name: str) -> str:
    """The whole novel ``name``, one of `NOVELS`, one blank line between paragraphs.

    Raises:
        ValueError: no such novel.
        RuntimeError: the Debian package cannot be had here; the message says what to do.
    """
    if name not in NOVELS:
        raise ValueError(f"name must be one of {', '.join(NOVELS)}, got {name!r}")
    file = cache_folder() / f"{name}.txt"
    if not file.exists():
        _fetch_all()
    return file.read_text(encoding="utf-8")


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "paged_stream" / "texts"


def _fetch_all() -> None:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        data = _download(Path(temporary)).read_bytes()
        for name, lines in zip(NOVELS, read_rdb(data), strict=True):
            file = Path(temporary) / f"{name}.txt"
            file.write_text(join_paragraphs(lines), encoding="utf-8")
            file.replace(folder / file.name)  # whole or not at all


def _download(folder: Path) -> Path:
    """Fetches and unpacks the package into ``folder``; returns its data file."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise RuntimeError(
                f"{tool} not found: the novels come from the Debian package {PACKAGE}. On a "
                f"Debian or Ubuntu machine run `apt-get download {PACKAGE} && dpkg -x "
                f"{PACKAGE}_*.deb x`, or copy the folder {cache_folder()} from a machine that "
                "has it."
            )
    download = ["apt-get", "download", PACKAGE]
    if _run(download, folder) is not None:
        _run(["apt-get", "update"], folder)  # the package lists may be missing or out of date
        if (error := _run(download, folder)) is not None:
            raise RuntimeError(
                f"`{' '.join(download)}` failed:\n{error}\nRun `apt-get update` as root and see "
                f"that `apt-cache policy {PACKAGE}` names a source, or copy the folder "
                f"{cache_folder()} from a machine that has it."
            )
    package = next(folder.glob(f"{PACKAGE}_*.deb"))
    if (error := _run(["dpkg", "-x", package.name, "x"], folder)) is not None:
        raise RuntimeError(f"cannot unpack {package.name}: {error}")
    return folder / "x" / DATA_FILE


def _run(command: list[str], folder: Path) -> str | None:
    """Runs ``command`` in ``folder``; returns what it said if it failed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip()


def join_paragraphs(lines: list[str]) -> str:
    """Printed lines to paragraphs: a blank line ends one, a space joins the lines inside."""
    paragraphs: list[list[str]] = [[]]
    for line in lines:
        if stripped := line.strip():
            paragraphs[-1].append(stripped)
        elif paragraphs[-1]:
            paragraphs.append([])
    return "\n\n".join(" ".join(paragraph) for paragraph in paragraphs if paragraph)


def read_rdb(data: bytes) -> Iterator[list[str]]:
    """The string vectors of an R lazy-load database, in file order.

    Each is a big-endian uint32, the raw length, and a zlib stream of the serialised vector.
    """
    while data:
        (length,) = struct.unpack_from(">I", data)
        stream = zlib.decompressobj()
        raw = stream.decompress(data[4:])
        if len(raw) != length:
            raise ValueError(f"broken Rdata.rdb: {len(raw)} bytes unpacked, {length} announced")
        yield parse_strings(raw)
        data = stream.unused_data


def parse_strings(raw: bytes) -> list[str]:
    """One character vector in R's XDR serialisation, versions 2 and 3."""
    string_vector, string = 16, 9  # SEXP types, the low byte of an item's flags
    if raw[:2] != b"X\n":
        raise ValueError(f"not R's XDR serialisation: it starts with {raw[:2]!r}")
    (version,) = struct.unpack_from(">i", raw, 2)
    offset = 14  # format, then the version and two versions of R
    if version == 3:  # the native encoding's name follows
        (size,) = struct.unpack_from(">i", raw, offset)
        offset += 4 + size
    flags, count = struct.unpack_from(">Ii", raw, offset)
    if flags & 0xFF != string_vector:
        raise ValueError(f"expected a character vector, got SEXP type {flags & 0xFF}")
    offset += 8
    strings = []
    for _ in range(count):
        flags, size = struct.unpack_from(">Ii", raw, offset)
        if flags & 0xFF != string or size < 0:
            raise ValueError(f"expected a string, got SEXP type {flags & 0xFF}, length {size}")
        offset += 8
        strings.append(raw[offset : offset + size].decode("utf-8"))
        offset += size
    return strings
