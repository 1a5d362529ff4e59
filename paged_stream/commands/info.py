"""``paged-stream info``: what a model needs, and what this machine has."""

from __future__ import annotations

import argparse

from paged_stream.commands.command import Command
from paged_stream.commands.options import engine_group

ENGINE = engine_group(without=("lora_modules",), positional="model")


def run(args: argparse.Namespace) -> int:
    """Print the plan.

    Raises:
        ValueError: settings, or a model that is not there.
    """
    from paged_stream.info import describe

    print(describe(**ENGINE.read(args)))
    return 0


COMMAND = Command(
    name="info",
    description=(
        "Plan capacity: KV bytes per token and stream, streams that fit, what this machine has."
    ),
    example="paged-stream info smollm2-135m-instruct --window-size 1024",
    arguments="[MODEL]",
    groups=(ENGINE,),
    run=run,
)
