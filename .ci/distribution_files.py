"""Checks that the distributions hold what they should, and no more.

python .ci/distribution_files.py SDIST WHEEL
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

WHEEL_NAME = re.compile(r"paged_stream-[\d.]+-cp311-abi3-manylinux_2_\d+_\w+\.whl")


def check_sdist(path: Path) -> None:
    """Every file of csrc/ and of the package is in it, as it is here. What is a link to scheduler/
    here is a folder there."""
    wanted = {file: file for folder in ("csrc", "paged_stream") for file in sources(folder)}
    wanted |= {Path("paged_stream", file): file for file in sources("scheduler")}
    names = ("LICENSE", "README.md", "pyproject.toml", "setup.py")
    wanted |= {Path(name): Path(name) for name in names}
    with tarfile.open(path) as archive:
        for place, file in sorted(wanted.items()):
            name = f"{path.name.removesuffix('.tar.gz')}/{place}"
            try:
                content = archive.extractfile(name)
            except KeyError:
                sys.exit(f"{path.name} lacks {file}")
            if content is None or content.read() != file.read_bytes():
                sys.exit(f"{file} in {path.name} is another one than here")


def check_wheel(path: Path) -> None:
    """It holds the packages and the library, for many Linux systems, and no library of torch."""
    if not WHEEL_NAME.fullmatch(path.name):
        sys.exit(f"{path.name} is not tagged cp311-abi3-manylinux_*")
    names = set(zipfile.ZipFile(path).namelist())
    wanted = {str(file) for file in sources("paged_stream")}
    wanted |= {f"paged_stream/{file}" for file in sources("scheduler")}
    wanted.add("paged_stream/_C.abi3.so")
    if missing := sorted(wanted - names):
        sys.exit(f"{path.name} lacks {', '.join(missing)}")
    others = {n for n in names - wanted if ".dist-info/" not in n and not n.endswith("/")}
    if others:
        sys.exit(f"{path.name} should not hold {', '.join(sorted(others))}")


def sources(folder: str) -> list[Path]:
    ignored = {".so", ".pyc"}
    return [p for p in Path(folder).rglob("*") if p.is_file() and p.suffix not in ignored]


if __name__ == "__main__":
    check_sdist(Path(sys.argv[1]))
    check_wheel(Path(sys.argv[2]))
