"""Where settings come from: the command line, the environment, a file, and defaults, in this order.

The library reads neither file nor environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from paged_stream.batch.batch_config import BatchConfig
from paged_stream.commands.options import SettingsGroup, flag
from paged_stream.config import EngineConfig
from paged_stream.pool.pool_options import PoolOptions
from paged_stream.scheduler.fields import Kind
from paged_stream.scheduler.hints import similar
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.settings import settings_of
from paged_stream.serve.serve_options import ServeOptions
from paged_stream.setting_hints import OTHER_ENGINES
from paged_stream.text.text_file import read_text

logger = logging.getLogger(__name__)

PREFIX = "PAGED_STREAM_"
CLASSES = (EngineConfig, SamplingParams, BatchConfig, PoolOptions, ServeOptions)


def complete(
    args: argparse.Namespace, groups: Collection[SettingsGroup], environ: Mapping[str, str]
) -> None:
    """Give a namespace every setting of a command, checked.

    Args:
        args: has the options that were given, as text, and ``config``, the file or ``None``. It
            gets ``defaulted``, the names of settings that nobody has given.

    Raises:
        ValueError: names the option, variable or file with a wrong value, and what is allowed; or
            the setting that is missing.
        OSError: the file cannot be read.
    """
    file = {} if args.config is None else read_config_file(args.config)
    variables = read_environment(environ)
    args.defaulted = set()
    for group in groups:
        for name, setting in group.settings.items():
            if hasattr(args, name):
                label, value = group.label(name), getattr(args, name)
            elif name in variables:
                label, value = variables[name]
            elif name in file:
                label, value = f"{args.config}: {name}", file[name]
            elif setting.default is dataclasses.MISSING:
                raise ValueError(f"{flag(name)} must be given, {setting.kind.allowed}")
            else:
                label, value = name, setting.default
                args.defaulted.add(name)
            setattr(args, name, setting.kind.check(label, _parsed(setting.kind, value)))


def _parsed(kind: Kind, value: Any) -> Any:
    """What text stands for; an option that may be repeated has a list of texts."""
    if isinstance(value, str):
        return kind.parse(value)
    if kind.words in ("repeated", "several") and isinstance(value, list):
        parts = (kind.parse(item) if isinstance(item, str) else [item] for item in value)
        return [item for part in parts for item in part]
    return value


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
    known = set(known_settings())
    for name in settings:
        if name not in known:
            raise ValueError(f"{path}: there is no setting {name!r}{_hint(name, known)}")
    return settings


def read_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Read the variables that begin with `PREFIX`; gives the variable and its text by setting.

    A name that is almost a setting is warned of. Others are left alone, and so are addresses: for a
    service that is called paged-stream, Kubernetes sets ``PAGED_STREAM_PORT=tcp://...`` and more.
    """
    known = {PREFIX + name.upper(): name for name in known_settings()}
    settings = {}
    for variable, text in environ.items():
        if variable in known:
            if not text.startswith("tcp://"):
                settings[known[variable]] = variable, text
        elif variable.startswith(PREFIX):
            if hint := _hint(variable.removeprefix(PREFIX).lower(), known.values()):
                logger.warning("%s is no setting%s", variable, hint)
    return settings


def known_settings() -> Iterator[str]:
    """The names of all settings that some command takes."""
    for cls in CLASSES:
        for name, setting in settings_of(cls).items():
            if setting.on_command_line:
                yield name


def _hint(name: str, known: Collection[str]) -> str:
    if name in OTHER_ENGINES:
        return f": {OTHER_ENGINES[name]}"
    match = similar(name, known)
    return f"; did you mean {match}?" if match else ""
