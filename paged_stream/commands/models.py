"""``paged-stream models``: what is in the hub's cache, fetching into it, and removing from it."""

from __future__ import annotations

import argparse

from paged_stream.commands.command import Command


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "pull", "rm"), help="what to do: rm removes")
    parser.add_argument(
        "names", nargs="*", metavar="MODEL", help="names on the hub, for pull and rm"
    )


def run(args: argparse.Namespace) -> int:
    """List, fetch or remove models.

    Raises:
        ValueError: a model is not there, or cannot be fetched.
    """
    from paged_stream.models.formats.hub_cache import cached_models, remove_model
    from paged_stream.models.formats.resolve import resolve_model

    if (args.action == "list") == bool(args.names):
        wanted = "no names" if args.action == "list" else "names of models"
        raise ValueError(f"models {args.action} takes {wanted}")
    if args.action == "list":
        for model in cached_models():
            print(f"{model.num_bytes / 1e9:8.2f} GB  {model.name}")
    for name in args.names:
        if args.action == "pull":
            print(resolve_model(name).place, flush=True)
        else:
            print(f"{remove_model(name) / 1e9:.2f} GB removed with {name}")
    return 0


COMMAND = Command(
    name="models",
    description=(
        "List, fetch and remove models of the Hugging Face hub. They are in its library's cache, "
        "where HF_HOME says. pull prints where; a pull that was broken off goes on with the files "
        "that are missing."
    ),
    example=(
        "paged-stream models pull HuggingFaceTB/SmolLM2-135M-Instruct\npaged-stream models list\n"
        "paged-stream models rm HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
    arguments="{list | pull | rm} [MODEL ...]",
    groups=(),
    run=run,
    add_options=add_options,
)
