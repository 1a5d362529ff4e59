"""``paged-stream lm-eval``: lm-eval's tasks on the engine."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from paged_stream.commands.command import Command
from paged_stream.commands.options import engine_group
from paged_stream.config import EngineConfig

ENGINE = engine_group(without=("lora_modules",))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT", help="what lm-eval run takes, behind a --"
    )


def run(args: argparse.Namespace) -> int:
    """Register the model and run lm-eval.

    Raises:
        ValueError: an engine's setting is out of range, or as lm-eval.
        ImportError: lm-eval is not installed; gives the command that installs it.
    """
    settings = ENGINE.read(args)
    EngineConfig(**settings)  # says what is wrong before lm-eval looks for its tasks
    if not args.arguments:
        raise ValueError(
            "nothing to run; pass lm-eval's arguments behind --, as in -- --tasks NAME"
        )
    try:
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise ImportError(
            f'this needs lm-eval, which is an extra: pip install "paged-stream[eval]" ({error})'
        ) from error
    from paged_stream.evaluation.lm_eval_model import NAME, PagedStreamLM

    model_registry.register(NAME, target=PagedStreamLM)
    given, sys.argv = sys.argv, ["lm-eval", *run_arguments(NAME, settings, args.arguments)]
    try:
        cli_evaluate()
    finally:
        sys.argv = given
    return 0


def run_arguments(name: str, settings: dict[str, Any], arguments: list[str]) -> list[str]:
    """What lm-eval's command line is given: the model with the settings that are no defaults, and
    the user's arguments, of which later ones win."""
    defaults = {name: setting.default for name, setting in ENGINE.settings.items()}
    changed = {
        name: value
        for name, value in settings.items()
        if name == "model" or (value != defaults[name] and name != "device")
    }
    model = ["--model", name, "--model_args", json.dumps(changed)]
    # lm-eval hands these to the model, too, with defaults of its own. The engine makes its own
    # batches; lm-eval prints what it is told.
    model += ["--device", settings["device"], "--batch_size", "auto"]
    return ["run", *model, *arguments]


COMMAND = Command(
    name="lm-eval",
    description=(
        "Benchmarks of lm-eval on the engine. What stands behind -- is for lm-eval: tasks, "
        "few-shot examples, where results go."
    ),
    example=(
        "paged-stream lm-eval --model smollm2-135m-instruct -- --tasks hellaswag --limit 100\n"
        "paged-stream lm-eval --dtype float32 -- --tasks mine --include_path tasks"
    ),
    arguments="-- ARGUMENT ...",
    groups=(ENGINE,),
    add_options=add_options,
    run=run,
)
