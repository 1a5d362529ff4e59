"""Models on the Hugging Face hub: fetched once into its cache, by its own library, whose settings
(``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``) hold."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from paged_stream.models.formats.files import is_weights_file
from paged_stream.models.formats.hub_cache import cached_models
from paged_stream.system.near_names import nearest
from paged_stream.system.progress_bar import DELAY_SECONDS, line_options
from paged_stream.system.short_text import short_error

logger = logging.getLogger(__name__)

_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/([\w./+-]+\.gguf))?(?:@([\w./-]+))?")
# Configuration, tokenizers and weights only: no code, and pickles only where there is nothing else.
_SMALL = ["*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt"]
_WEIGHTS = ["*.safetensors"]
_PICKLES = ["pytorch_model*.bin", "adapter_model.bin"]
_NEVER_READ = ["*/*.safetensors"]  # in a folder of the repository
# The same weights once more, in another dtype or under Mistral's names.
_AGAIN = ["consolidated*", "*.index.*.json", "model.*.safetensors", "params.json"]
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_MOST_NAMES = 300  # of a question to the hub


class HubName(NamedTuple):
    """``org/name``, ``org/name@revision``, ``org/name/file.gguf`` or
    ``org/name/file.gguf@revision``.

    Args:
        repository: ``org/name``.
        file: a GGUF file in it, or ``None``.
        revision: a branch, a tag or a commit; ``None`` is the default branch.
    """

    repository: str
    file: str | None
    revision: str | None

    def of_file(self, file: str) -> str:
        """The name of a file beside this one."""
        return f"{self.repository}/{file}" + (f"@{self.revision}" if self.revision else "")


def hub_name(name: str) -> HubName | None:
    """What a name means on the hub, if it can mean something there. ``folder/file.gguf`` cannot."""
    match = _NAME.fullmatch(name)
    if match is None or ".." in name or match[1].endswith(".gguf"):
        return None
    return HubName(match[1], match[2], match[3])


def fetch(name: HubName, setting: str, *, with_weights: bool = True) -> Path:
    """The folder, or the GGUF file, of a model, fetched unless it is in the cache.

    Args:
        setting: what asked for it, as messages call it.

    Raises:
        ValueError: there is none, or it cannot be fetched.
    """
    logger.info("fetching %s from the Hugging Face hub, unless it is in the cache", name.repository)
    try:
        return _fetch(name, with_weights)
    except Exception as error:  # the library's own, and those of the HTTP clients beneath it
        raise ValueError(
            f"{setting} is no local folder and could not be fetched from the hub: "
            f"{_problem(name, error)}; check the name and the connection, or pass a folder or a "
            ".gguf file"
        ) from error


def _fetch(name: HubName, with_weights: bool) -> Path:
    if name.file is not None:
        return _fetch_file(name, name.file)
    if not with_weights:
        return _snapshot(name, _SMALL, _AGAIN)
    every = _SMALL + _WEIGHTS
    for patterns, without in ((every, _AGAIN), (every, []), (every + _PICKLES, [])):
        folder = _snapshot(name, patterns, without + _NEVER_READ)
        if folder.is_dir() and any(_is_weights(path) for path in folder.iterdir()):
            return folder
    message = f"{name.repository} has no weights in safetensors or pickles"
    if files := _gguf_files(name):
        usual = min(files, key=lambda file: "Q4_K_M" not in file.upper())
        message += f"; pass one of its {len(files)} GGUF files, such as {name.of_file(usual)!r}"
    raise ValueError(message)


def _fetch_file(name: HubName, file: str) -> Path:
    """Fetch a GGUF file, with the others if it is one of several that are numbered."""
    path = _snapshot(name, [_PART.sub(r"-*-of-\1.gguf", file)]) / file
    if path.is_file():
        return path
    near = nearest(file, _gguf_files(name))
    hint = f"; did you mean {name.of_file(near)!r}?" if near else ""
    raise ValueError(f"{name.repository} has no file {file}{hint}")


def _is_weights(path: Path) -> bool:
    """Whether a file holds weights; an index of them only says where they are."""
    return is_weights_file(path.name) and path.suffix != ".json"


def _snapshot(name: HubName, patterns: list[str], without: list[str] | None = None) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        name.repository,
        revision=name.revision,
        allow_patterns=patterns,
        ignore_patterns=without,
        etag_timeout=3,
        tqdm_class=None if sys.stderr.isatty() else _progress_lines(),
    )
    return Path(folder)


def _progress_lines() -> type[Any]:
    """The library's bars where there is no terminal: a line now and then, of the bytes fetched."""
    from huggingface_hub.utils import tqdm

    class ProgressLines(tqdm):
        monitor_interval = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            if str(options.get("desc")).startswith("Downloading"):
                options |= {"desc": "downloading", "delay": DELAY_SECONDS, "position": 0}
                options |= line_options()
            else:  # files, and bytes that are unpacked
                options["disable"] = True
            self.shown_from = time.time() + DELAY_SECONDS
            super().__init__(*args, **options)

        def refresh(self, *args: Any, **options: Any) -> None:
            if time.time() >= self.shown_from:
                super().refresh(*args, **options)

        def set_description_str(self, *args: Any, **options: Any) -> None:
            """Its last is "Download complete", which tqdm would write at once."""

    return ProgressLines


def _problem(name: HubName, error: Exception) -> str:
    """Why a model could not be fetched, on one line."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        return f"{why} and the model is not in its cache{_did_you_mean(name, ask_hub=False)}"
    if isinstance(error, errors.GatedRepoError):
        return f"{name.repository} is for those who have asked for it there; then set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no {name.repository}, or not without HF_TOKEN{_did_you_mean(name)}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name.repository} has no revision {name.revision!r}"
    return short_error(error)


def _did_you_mean(name: HubName, *, ask_hub: bool = True) -> str:
    from huggingface_hub import HfApi

    known = [model.name for model in cached_models()]
    if ask_hub:
        organisation, _, model = name.repository.partition("/")
        ask = partial(HfApi().list_models, limit=_MOST_NAMES)
        known += _answer(lambda: (each.id for each in ask(author=organisation)))
        known += _answer(lambda: (each.id for each in ask(search=model)))
    near = nearest(name.repository, known)
    return f"; did you mean {near!r}?" if near else ""


def _gguf_files(name: HubName) -> list[str]:
    from huggingface_hub import HfApi

    files = _answer(lambda: HfApi().list_repo_files(name.repository, revision=name.revision))
    return sorted(file for file in files if file.endswith(".gguf"))


def _answer(ask: Callable[[], Iterable[str]]) -> list[str]:
    """What the hub says to a question that only makes a message better."""
    try:
        return list(ask())
    except Exception:  # as in `fetch`
        return []
