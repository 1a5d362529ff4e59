"""Text must be UTF-8; what is not is found by its byte."""

from __future__ import annotations

import pytest

from paged_stream.text.text_file import decode_text, read_text


def test_text_as_python_reads_it(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\ufeffäöü\r\nend\rof it\n".encode())
    assert read_text(path) == path.read_text(encoding="utf-8-sig") == "äöü\nend\nof it\n"


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"\xff\xfea\x00", "byte 0xff at offset 0;"),
        (b"a" * 5000 + b"\xe4", "byte 0xe4 at offset 5,000;"),
        ("\ufeffä".encode() + b"\x80", "byte 0x80 at offset 5;"),
    ],
)
def test_the_byte_that_is_wrong(tmp_path, content, place):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=place) as error:
        read_text(path)
    assert str(error.value).startswith(f"{path} is not UTF-8 text")
    with pytest.raises(ValueError, match="^standard input is not UTF-8"):
        decode_text(content, "standard input")
