"""Files whose rows are read one by one, each as a JSON object: JSON lines, JSON documents, CSV and
text.

All of them give `Row`: a position, the bytes that it took, and either its values or the reason that
there are none.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

READ_BYTES = 1 << 20
_GAP = re.compile(r"[\s,]*")
_DECODER = json.JSONDecoder()
_DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Row:
    """One row as its file has it.

    Args:
        position: byte, line or number of the row in the file, from 0; a line from 1.
        num_bytes: of the unpacked file.
        text: a JSON object; ``None`` for a bad row.
        reason: why it is bad.
        values: what the object holds.
    """

    position: int
    num_bytes: int
    values: dict[str, Any] | None = None
    text: str | None = None
    reason: str = ""


def try_row(position: int, num_bytes: int, read: Callable[[], tuple[dict[str, Any], str]]) -> Row:
    """The row that ``read`` gives, with its text; or a bad row that says why it cannot."""
    try:
        values, text = read()
    except (ValueError, RecursionError) as error:
        return Row(position, num_bytes, reason=_reason(error))
    return Row(position, num_bytes, values, text)


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON: {error}"
    return str(error)


def _as_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, got {type(value).__name__}")
    return value


# JSON lines


def json_lines(lines: LineReader, stop: int | None) -> Iterator[Row]:
    """A row for each line that begins before ``stop``."""
    while stop is None or lines.offset < stop:
        found = lines.next()
        if found is None:
            return
        position, raw = found
        read = partial(_decode_line, raw, position, lines.limit)
        yield try_row(position, lines.offset - position, read)


def _decode_line(raw: bytes | None, position: int, limit: int) -> tuple[dict[str, Any], str]:
    if raw is None:
        raise ValueError(f"larger than max_row_bytes={limit}")
    line = raw.decode("utf-8" if position else "utf-8-sig").strip()
    if not line:
        raise ValueError("empty line")
    return _as_object(json.loads(line)), line


class LineReader:
    """Lines of a binary file from where it stands; ``offset`` is where the next one begins."""

    def __init__(self, file: Any, limit: int) -> None:
        self.offset = 0
        self.limit = limit
        self._file = file
        self._buffer = b""
        self._begin = 0

    def seek(self, offset: int) -> None:
        """Go to another place, before anything is read."""
        self._file.seek(offset)
        self.offset = offset

    def next(self) -> tuple[int, bytes | None] | None:
        """Offset and bytes of the next line; ``None`` for bytes that are more than ``limit``."""
        start, size = self.offset, 0
        pieces = []
        while True:
            newline = self._buffer.find(b"\n", self._begin)
            end = len(self._buffer) if newline < 0 else newline
            size += end - self._begin
            if size <= self.limit:
                pieces.append(self._buffer[self._begin : end])
            self._begin = end + 1
            if newline >= 0:
                break
            self._buffer, self._begin = self._file.read(READ_BYTES), 0
            if not self._buffer:
                if size == 0:
                    return None
                break
        self.offset = start + size + (newline >= 0)
        return start, b"".join(pieces) if size <= self.limit else None


# JSON documents


class _Text:
    """The text of a binary file, which is read as far as somebody needs it."""

    def __init__(self, file: Any) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._file = file
        self.text = ""
        self.begin = 0  # of what is still to be looked at
        self.is_whole = False

    def more(self) -> None:
        """Read on. As much again as there is, so that long values are not looked at too often."""
        rest = self.text[self.begin :]
        data = self._file.read(max(READ_BYTES, len(rest)))
        self.is_whole = not data
        self.text, self.begin = rest + self._decode(data, self.is_whole), 0

    def skip_gap(self) -> str:
        """Go to the next value; returns the character that it begins with, or nothing."""
        while True:
            gap = _GAP.match(self.text, self.begin)
            assert gap is not None
            self.begin = gap.end()
            if self.begin < len(self.text) or self.is_whole:
                return self.text[self.begin : self.begin + 1]
            self.more()


def json_document(file: Any, limit: int) -> Iterator[Row]:
    """The rows of a file that is JSON lines, an array, or JSON values that follow each other."""
    head = file.read(READ_BYTES)
    replayed = _Replayed(head, file)
    if _begins_with_line(head):
        return json_lines(LineReader(replayed, limit), None)
    return _json_values(_Text(replayed), limit)


class _Replayed:
    """A file whose beginning has been read already."""

    def __init__(self, head: bytes, file: Any) -> None:
        self._head = head
        self._file = file

    def read(self, num_bytes: int) -> bytes:
        head, self._head = self._head, b""
        return head or self._file.read(num_bytes)


def _begins_with_line(head: bytes) -> bool:
    """Whether the first line is a whole object. An empty one is that in any file."""
    try:
        first = json.loads(head.removeprefix(codecs.BOM_UTF8).lstrip().split(b"\n", 1)[0])
        return isinstance(first, dict) and first != {}
    except (ValueError, RecursionError):
        return False


def _json_values(source: _Text, limit: int) -> Iterator[Row]:
    """A row for each element of an array, or each value. Behind something that is no JSON, nothing
    can be found, so that is the last row."""
    source.more()
    source.begin = int(source.text.startswith("\ufeff"))
    is_array = source.skip_gap() == "["
    source.begin += is_array
    for number in itertools.count():
        first = source.skip_gap()
        if not first or (is_array and first == "]"):
            return
        row, is_found = _next_value(source, number, limit)
        yield row
        if not is_found:
            return


def _next_value(source: _Text, number: int, limit: int) -> tuple[Row, bool]:
    """The value that begins here, and whether its end was found."""
    while True:
        try:
            value, end = _DECODER.raw_decode(source.text, source.begin)
        except (ValueError, RecursionError) as error:
            num_bytes = len(source.text) - source.begin
            if source.is_whole or num_bytes > limit:
                reason = f"{_reason(error)}, or larger than max_row_bytes={limit}"
                return Row(number, num_bytes, reason=f"{reason}; nothing behind it is read"), False
        else:
            # A number, or a word, may go on in what has not been read.
            if end < len(source.text) or source.is_whole:
                break
        source.more()
    text = source.text[source.begin : end]
    source.begin = end
    return try_row(number, len(text), partial(_decode_value, value, text, limit)), True


def _decode_value(value: Any, text: str, limit: int) -> tuple[dict[str, Any], str]:
    if len(text) > limit:
        raise ValueError(f"larger than max_row_bytes={limit}")
    return _as_object(value), _checked(text)


def _checked(text: str) -> str:
    """Raises ValueError if text has bytes that were no UTF-8."""
    text.encode("utf-8", "surrogateescape").decode()
    return text


# CSV


def csv_rows(file: Any, limit: int, delimiter: str | None) -> Iterator[Row]:
    """A row for each record below the header, with text as values.

    Args:
        delimiter: ``None`` is the one of comma, semicolon, tab and bar that the header has most of.
    """
    csv.field_size_limit(limit)
    lines = _CsvLines(file, limit)
    delimiter = delimiter or max(_DELIMITERS, key=lines.peek().count)
    # Not strict, an open quote would take the rest of the file for a value.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        lines.begin_record()
        position = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(position, lines.num_bytes, reason=f"no CSV: {error}")
            continue
        if not record and not lines.is_too_long:
            continue  # an empty line
        if header is not None:
            read = partial(_record, header, record, lines.is_too_long, limit)
            yield try_row(position, lines.num_bytes, read)
            continue
        header = record
        if reason := _wrong_header(header):
            yield Row(position, lines.num_bytes, reason=f"{reason}; nothing behind it is read")
            return


def _wrong_header(names: list[str]) -> str:
    if twice := [name for name in names if names.count(name) > 1]:
        return f"the header must not have a column twice, got {twice[0]!r}"
    return ""


def _record(
    names: list[str], record: list[str], is_too_long: bool, limit: int
) -> tuple[dict[str, Any], str]:
    if is_too_long or sum(map(len, record)) > limit:
        raise ValueError(f"larger than max_row_bytes={limit}")
    if len(record) != len(names):
        raise ValueError(f"must have {len(names)} fields as the header has, got {len(record)}")
    values = dict(zip(names, map(_checked, record), strict=True))
    return values, json.dumps(values)


class _CsvLines:
    """Lines as text, with their ends, for `csv.reader`."""

    def __init__(self, file: Any, limit: int) -> None:
        self._lines = LineReader(file, limit)
        self._first: str | None = None
        self.begin_record()

    def begin_record(self) -> None:
        self._begin = self._lines.offset
        self.is_too_long = False

    @property
    def num_bytes(self) -> int:
        """Bytes of the record so far."""
        return self._lines.offset - self._begin

    def peek(self) -> str:
        """The first line."""
        self._first = next(self, "")
        return self._first

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        if self._first:
            first, self._first = self._first, None
            return first
        found = self._lines.next()
        if found is None:
            raise StopIteration
        position, raw = found
        self.is_too_long |= raw is None
        codec = "utf-8" if position else "utf-8-sig"
        return (raw or b"").decode(codec, "surrogateescape") + "\n"


# Text


def text_row(file: Any, name: str, limit: int) -> Row:
    """A whole file as one row."""
    data: bytes = file.read(limit + 1)

    def read() -> tuple[dict[str, Any], str]:
        if len(data) > limit:
            raise ValueError(f"larger than max_row_bytes={limit}")
        values = {"path": name, "text": data.decode("utf-8-sig")}
        return values, json.dumps(values, ensure_ascii=False)

    return try_row(0, len(data), read)
