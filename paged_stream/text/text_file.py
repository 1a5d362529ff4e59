"""Text from files and pipes, which must be UTF-8."""

from __future__ import annotations

from pathlib import Path


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, without a byte order mark and with ``\\n`` as the end of each line.

    Raises:
        ValueError: as `decode_text`.
        OSError: the file cannot be read.
    """
    return decode_text(Path(path).read_bytes(), str(path))


def decode_text(content: bytes, name: str) -> str:
    """Decode UTF-8 as `read_text` does.

    Args:
        name: what the error calls the content.

    Raises:
        ValueError: gives the name, and the byte that is wrong with its offset.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text: byte 0x{content[error.start]:02x} at offset "
            f"{error.start:,}; convert it to UTF-8 first"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
