"""The command line: ``paged-stream generate | chat | batch | serve | info`` and
the evaluations."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paged_stream.commands import batch, chat, generate, serve
from paged_stream.commands.evaluation import add_commands as add_evaluation_commands
from paged_stream.commands.options import (
    DEFAULT_MODEL,
    SETTINGS_HELP,
    add_engine_options,
    add_sampling_options,
)
from paged_stream.commands.settings import apply_settings, engine_settings, sampling_params
from paged_stream.version import __version__


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 2 for wrong use; 130 after Ctrl-C; 1 if nobody reads the output any more.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    with _messages():
        try:
            apply_settings(args.parser, args.config, os.environ)
            args = parser.parse_args(argv)
            return args.run(args)
        except BrokenPipeError:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
            return 1
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return 130


@contextmanager
def _messages() -> Iterator[None]:
    """Show warnings, and what is done to a model before it can be used, on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    everything, models = logging.getLogger("paged_stream"), logging.getLogger("paged_stream.models")
    level = models.level
    everything.addHandler(handler)
    models.setLevel(logging.INFO)
    try:
        yield
    finally:
        everything.removeHandler(handler)
        models.setLevel(level)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paged-stream", description="Language models on text that never ends."
    )
    parser.add_argument("--version", action="version", version=f"paged-stream {__version__}")
    commands = parser.add_subparsers(dest="command")
    command = _command(commands, "generate", generate.run, generate.DESCRIPTION, generate.EXAMPLE)
    generate.add_options(command)
    add_engine_options(command)
    add_sampling_options(command, max_tokens=256, temperature=0.8)
    command = _command(commands, "chat", chat.run, chat.DESCRIPTION, chat.EXAMPLE)
    chat.add_options(command)
    add_engine_options(command)
    add_sampling_options(command, max_tokens=512, temperature=0.6)
    command = _command(commands, "batch", _batch, batch.DESCRIPTION, batch.EXAMPLE)
    batch.add_options(command)
    add_engine_options(command, threads_help="per replica; default: a fair share")
    add_sampling_options(command, max_tokens=256, temperature=0.0)
    command.set_defaults(top_p=1.0, repetition_penalty=1.0, seed=0)
    command = _command(commands, "serve", _serve, serve.DESCRIPTION, serve.EXAMPLE)
    serve.add_options(command)
    add_engine_options(command, threads_help="of a replica without a GPU; default: 1")
    command = _command(
        commands,
        "info",
        _info,
        "Plan capacity: KV bytes per token and stream, streams that fit, what this machine has.",
        "paged-stream info smollm2-135m-instruct --window-size 1024",
    )
    command.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help="name, folder, .gguf file or hub id (default: %(default)s)",
    )
    add_engine_options(command, model=False)
    add_evaluation_commands(commands, _command)
    return parser


def _command(
    commands: Any, name: str, run: Any, description: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=description.split(". ")[0].rstrip("."),
        description=description,
        epilog=f"example:\n  {example}\n\n{SETTINGS_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, parser=command)
    return command


def _batch(args: argparse.Namespace) -> int:
    return batch.run(args, engine_settings(args, without=("seed",)), sampling_params(args))


def _serve(args: argparse.Namespace) -> int:
    return serve.run(args, engine_settings(args))


def _info(args: argparse.Namespace) -> int:
    from paged_stream.info import describe

    print(describe(args.model, **engine_settings(args)))
    return 0
