"""Settings that are no options on the command line: from a file and from the environment.

They become the defaults of the options, so that options go before them. The library reads neither.
"""

from __future__ import annotations

import argparse
import difflib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from paged_stream.config import EngineConfig
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.text.text_file import read_text

logger = logging.getLogger(__name__)

PREFIX = "PAGED_STREAM_"
# By name, as annotations; `seed` has the same in both.
_TYPES = {
    field.name: str(field.type) for kind in (SamplingParams, EngineConfig) for field in fields(kind)
}


def apply_settings(
    parser: argparse.ArgumentParser, config: Path | None, environ: Mapping[str, str]
) -> None:
    """Make the settings of a file, and before them those of the environment, a command's defaults.

    Raises:
        ValueError: names the file or the variable, and the setting that is wrong.
        OSError: the file cannot be read.
    """
    if config is not None:
        parser.set_defaults(**read_config_file(config))
    parser.set_defaults(**read_environment(environ))


def read_config_file(path: Path) -> dict[str, Any]:
    """Read settings, from JSON if the name ends so, else from YAML. Names may have dashes.

    Raises:
        ValueError: names the file and what is wrong with it.
        OSError: the file cannot be read.
    """
    import yaml

    text = read_text(path)
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must have names and values, such as `window_size: 1024`")
    settings = {str(name).replace("-", "_"): value for name, value in content.items()}
    for name, value in settings.items():
        if name not in _TYPES:
            raise ValueError(f"{path}: there is no setting {name!r}{_hint(name, _TYPES)}")
        _check_kind(f"{path}: {name}", name, value)
    return settings


def read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Read the variables that begin with `PREFIX`.

    A name that is almost a setting is warned of. Others are left alone: a cluster may set some,
    after a service that is called paged-stream.

    Raises:
        ValueError: names the variable.
    """
    known = {PREFIX + name.upper(): name for name in _TYPES}
    settings = {}
    for variable, text in environ.items():
        if variable in known:
            name = known[variable]
            settings[name] = _parse(text, _TYPES[name])
            _check_kind(variable, name, settings[name])
        elif variable.startswith(PREFIX):
            if hint := _hint(variable.removeprefix(PREFIX).lower(), _TYPES):
                logger.warning("%s is no setting%s", variable, hint)
    return settings


def _parse(text: str, kind: str) -> Any:
    if text.lower() == "none":
        return None
    if kind.startswith("str"):
        return text
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def _check_kind(label: str, name: str, value: Any) -> None:
    """Raise ValueError for text that is no number; the rest is judged where the value is used."""
    kind = _TYPES[name]
    if isinstance(value, str) and "str" not in kind:
        raise ValueError(f"{label} must be {kind.replace(' | ', ' or ')}, got {value!r}")


def _hint(name: str, known: Collection[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def engine_settings(args: argparse.Namespace, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Fields of `EngineConfig` that options, file and environment give, but for the model.

    Args:
        without: those that the command itself decides.
    """
    names = (field.name for field in fields(EngineConfig))
    return {
        name: getattr(args, name)
        for name in names
        if hasattr(args, name) and name != "model" and name not in without
    }


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """`SamplingParams` as options, file and environment give them.

    Raises:
        ValueError: as `SamplingParams`.
    """
    names = (field.name for field in fields(SamplingParams))
    return SamplingParams(**{name: getattr(args, name) for name in names if hasattr(args, name)})
