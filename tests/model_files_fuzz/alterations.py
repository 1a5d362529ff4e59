"""Ways to alter a file: its bytes, or one field of what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

ODD_INTEGERS: tuple[int, ...] = (
    0,
    1,
    -1,
    3,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**53,
    2**62,
    2**63 - 1,
)
ODD_INTEGERS += (2**63, 2**64 - 1, 10**400, -(2**63))
ODD_VALUES: tuple[Any, ...] = (None, True, False, 0.0, 1.5, -0.5, 1e308, math.nan, math.inf)
ODD_VALUES += ("", "x", "x" * 3000, "\x1b[31m\n\0", "\ud800", "../../etc/passwd", "2", "NaN")
ODD_VALUES += ([], {}, [[]], [None], {"a": 1}, ["x"] * 5, [1.5], [-1], [10**30], *ODD_INTEGERS)


def alter_bytes(random: Random, content: bytes) -> bytes:
    """Overwrite, insert, delete, cut, or repeat a few bytes, more often near the beginning."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5))):
        at = int(len(data) * random.random() ** random.choice((1, 4, 8)))
        size = random.choice((1, 1, 2, 8, 50))
        match random.randrange(6):
            case 0:
                data[at : at + size] = random.randbytes(size)
            case 1:
                data[at:at] = random.randbytes(size)
            case 2:
                del data[at : at + size]
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[max(0, at - size) : at]
            case 5:
                odd = random.choice(ODD_INTEGERS) % 2**64
                data[at : at + 8] = odd.to_bytes(8, "little")
    return bytes(data)


def alter_integers(random: Random, content: bytes) -> bytes:
    """Overwrite a number of four or eight bytes in what a binary file begins with."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(8, max(9, min(len(data), random.choice((40, 400, 20_000)))))
        odd = random.choice((*ODD_INTEGERS, random.randrange(300)))
        size = random.choice((4, 8))
        data[at : at + size] = (odd % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(data)


def alter_json(random: Random, content: bytes) -> bytes:
    """Change one value of a JSON file, take it away, or nest it deeply."""
    try:
        tree = json.loads(content)
    except ValueError:
        return alter_bytes(random, content)
    parent, key = _pick(random, tree)
    if parent is None:
        return json.dumps(random.choice(ODD_VALUES)).encode()
    match random.randrange(8):
        case 0:
            del parent[key]
        case 1:
            parent[key] = {"deep": "DEEP"}
            depth = random.choice((50, 900, 100_000))
            return json.dumps(tree).encode().replace(b'"DEEP"', b"[" * depth + b"]" * depth)
        case 2 if isinstance(parent, dict):
            parent[random.choice((*map(str, parent), "x" * 2000, "\x1b"))] = parent.pop(key)
        case 3 if isinstance(parent, list):
            parent.insert(0, parent[key])
        case _:
            parent[key] = random.choice(ODD_VALUES)
    return json.dumps(tree).encode()


def _pick(random: Random, tree: Any) -> tuple[Any, Any]:
    parent = key = None
    while isinstance(tree, dict | list) and tree:
        if parent is not None and random.random() < 0.3:
            break
        parent = tree
        # Not one of a thousand tokens most of the time.
        keys = list(tree) if isinstance(tree, dict) else list(range(min(len(tree), 8)))
        key = random.choice(keys)
        tree = tree[key]
    return parent, key


def alter_safetensors(random: Random, content: bytes) -> bytes:
    """Change one value of the header, with the length that it has then or with the old one."""
    size = int.from_bytes(content[:8], "little")
    header = alter_json(random, content[8 : 8 + size])
    length = size if random.random() < 0.3 else len(header)
    return length.to_bytes(8, "little") + header + content[8 + size :]


def alteration_of(random: Random, path: Path) -> Callable[[Random, bytes], bytes]:
    """One that suits a file."""
    if random.random() < 0.3:
        return alter_bytes
    by_suffix = {".json": alter_json, ".safetensors": alter_safetensors, ".gguf": alter_integers}
    return by_suffix.get(path.suffix, alter_bytes)
