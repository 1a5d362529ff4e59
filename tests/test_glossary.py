"""One word for each thing: the words that docs/glossary.md rules out are used nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()
TERMS = re.findall(r"^(.+)\n: ", GLOSSARY, re.MULTILINE)
# The words of others: of people who come from there, and of file formats.
QUOTES = {
    "docs/glossary.md",
    "docs/coming-from.md",
    "paged_stream/models/formats/gguf_config.py",
    "paged_stream/setting_hints.py",
}
FOLDERS = ("scheduler", "paged_stream", "csrc", "docs", "benchmarks", "examples")
ENDINGS = {".py", ".md", ".h", ".cpp", ".inl", ".cu", ".cuh"}


def sources() -> dict[str, str]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    files += ROOT.glob("*.md")
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for path in files
        if path.suffix in ENDINGS and path.is_file()
    }


def ruled_out() -> list[tuple[str, str]]:
    """Words that are not used, each with the one that is."""
    table = GLOSSARY.partition("## Words that are not used")[2]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)
    return [(word, instead) for words, instead in rows[1:] for word in words.split(", ")]


@pytest.mark.parametrize(("word", "instead"), ruled_out())
def test_other_words_are_not_used(word, instead):
    between_words = r"[\s_-]+"
    pattern = re.compile(rf"\b{between_words.join(word.split())}s?\b", re.IGNORECASE)
    found = [
        f"{name}:{text[: match.start()].count(chr(10)) + 1}"
        for name, text in sources().items()
        if name not in QUOTES
        for match in pattern.finditer(text)
    ]
    assert not found, f"say {instead!r} instead of {word!r}"
    assert instead in TERMS


def test_names_in_the_glossary_exist():
    code = "".join(text for name, text in sources().items() if name.endswith(".py"))
    names = set(re.findall(r"`([a-z_]+)`", GLOSSARY))
    assert names and not [name for name in names if not re.search(rf"\b{name}\b", code)]


def test_terms_are_defined_once():
    assert TERMS and len(TERMS) == len(set(TERMS))
