"""Options that the commands share: of the engine, of sampling, and where settings come from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "smollm2-135m-instruct"
SETTINGS_HELP = """\
settings:
  Options of the engine and of sampling may also be set in a YAML or JSON file (--config FILE) and
  in variables of the environment. Names are those of EngineConfig and SamplingParams, such as
  `window_size: 1024` in the file or PAGED_STREAM_WINDOW_SIZE=1024. An option on the command line
  goes before a variable, a variable before the file, the file before the default."""


def add_general_options(
    group: Any, *, threads_help: str = "default: what the process is given"
) -> None:
    """Add what every command with an engine takes."""
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="settings in YAML or JSON, see below"
    )
    group.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        help="for models converted from .gguf files (default: $XDG_CACHE_HOME/paged_stream, or "
        "~/.cache/paged_stream)",
    )
    group.add_argument(
        "--num-threads", type=int, metavar="N", help=f"processor threads ({threads_help})"
    )


def num_bytes(text: str) -> int | str:
    """A number; EngineConfig judges anything else."""
    return int(text) if text.isdecimal() else text


def quantization(name: str) -> str | None:
    return None if name == "none" else name


def add_engine_options(
    parser: argparse.ArgumentParser, *, model: bool = True, **general: str
) -> None:
    group = parser.add_argument_group("engine")
    if model:
        group.add_argument(
            "--model",
            default=DEFAULT_MODEL,
            help="name, folder, .gguf file or hub id (default: %(default)s)",
        )
    group.add_argument("--num-sink-tokens", type=int, default=4, metavar="S")
    group.add_argument(
        "--window-size", type=int, metavar="W", help="default: the model's trained length less S"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group.add_argument(
        "--dtype", default="auto", help="auto, float32, bfloat16, or on CUDA float16"
    )
    group.add_argument(
        "--quantization",
        default="auto",
        type=quantization,
        help="auto (GGUF files as they are), int8, int4 or none (default: %(default)s)",
    )
    group.add_argument(
        "--kv-cache-dtype", default="auto", help="auto, which is the model's, int8, or on CUDA fp8"
    )
    group.add_argument("--block-size", type=int, default=16)
    group.add_argument(
        "--kv-cache-memory-bytes", type=num_bytes, metavar="BYTES", help="such as 4GiB"
    )
    group.add_argument(
        "--gpu-memory-utilization", type=float, default=0.9, metavar="SHARE", help="0.9 by default"
    )
    group.add_argument("--attention-backend", default="auto", help="auto, native or xformers")
    group.add_argument(
        "--tensor-parallel-size",
        type=int,
        default=1,
        metavar="K",
        help="processes that share the model, placed by Ray (default: %(default)s)",
    )
    group.add_argument(
        "--num-decode-steps",
        type=int,
        metavar="N",
        help="steps without a look at tokens in between (default: 1; on CUDA and in batches 8)",
    )
    add_general_options(group, **general)


def add_sampling_options(
    parser: argparse.ArgumentParser, *, max_tokens: int, temperature: float
) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=max_tokens)
    group.add_argument(
        "--endless",
        action="store_const",
        dest="max_tokens",
        const=None,
        help="no --max-tokens: go on until the model or Ctrl-C stops it",
    )
    group.add_argument("--temperature", type=float, default=temperature)
    group.add_argument("--top-p", type=float, default=0.95)
    group.add_argument("--repetition-penalty", type=float, default=1.1)
    group.add_argument("--seed", type=int)
    group.add_argument("--ignore-eos", action="store_true")
