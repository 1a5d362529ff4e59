"""``paged-stream batch``: what the user sees of a run."""

from __future__ import annotations

import argparse
import sys

from paged_stream.batch.batch_config import EXACT, BatchConfig
from paged_stream.commands.command import Command
from paged_stream.commands.options import engine_group, sampling_group, settings_group
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.system.ray_extra import import_ray

BATCH = settings_group("batch", BatchConfig)
ENGINE = engine_group(without=("seed",), defaults=EXACT)  # each row has a seed of its own
SAMPLING = sampling_group(max_tokens=256, temperature=0.0)
SOME_BAD, TOO_MANY_BAD = 3, 4


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="read 5 rows, print the plan, run nothing"
    )


def read_config(args: argparse.Namespace) -> BatchConfig:
    """The batch that a command line describes.

    Raises:
        ValueError: settings that must change.
    """
    engine, sampling = ENGINE.read(args), SAMPLING.read(args)
    if args.task == "openai" and "temperature" in args.defaulted:
        del sampling["temperature"]  # OpenAI's default is the class's
    return BatchConfig(
        model=engine.pop("model"),
        engine=engine,
        sampling_params=SamplingParams(**sampling),
        **BATCH.read(args),
    )


def run(args: argparse.Namespace) -> int:
    """Run a batch, or tell what it would do.

    Returns:
        0 if all rows have output, `SOME_BAD` if not all, `TOO_MANY_BAD` if more are bad than
        ``max_errors`` allows, 130 if it was interrupted.

    Raises:
        ValueError: settings or inputs that must change.
        ImportError: Ray is not installed.
    """
    if not args.dry_run:
        import_ray("data")  # says so before anything is looked at
    config = read_config(args)
    from paged_stream.batch.run import describe_batch, run_batch

    if args.dry_run:
        print(describe_batch(config))
        return 0
    try:
        summary = run_batch(config)
    except KeyboardInterrupt:
        print("\ninterrupted; --resume goes on with what is left", file=sys.stderr)
        return 130
    print(summary.table())
    if summary.has_too_many_bad:
        print(f"too many bad rows, max_errors is {config.max_errors}", file=sys.stderr)
        return TOO_MANY_BAD
    return SOME_BAD if summary.num_bad else 0


COMMAND = Command(
    name="batch",
    description=(
        "Run a model over a corpus of any size, on one machine or a Ray cluster. Output is "
        "committed part by part; after any crash, --resume goes on without losing or repeating a "
        "row."
    ),
    example=(
        "paged-stream batch --input questions.jsonl --output answers --max-tokens 100\n"
        "paged-stream batch --input books/ --output scores --task score --window-size 2044"
    ),
    groups=(BATCH, ENGINE, SAMPLING),
    add_options=add_options,
    run=run,
)
