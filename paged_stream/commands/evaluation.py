"""The commands of the evaluations, for a command line to add.

Nothing heavy is imported before one of them runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from paged_stream.commands import attention_map, dialogue, perplexity, streameval

# From the sub-parsers, a name, what to run, a description and an example to the command's parser.
AddCommand = Callable[[Any, str, Any, str, str], argparse.ArgumentParser]


def add_commands(commands: Any, add_command: AddCommand) -> None:
    """Add the commands to a command line."""
    perplexity.add_options(
        add_command(
            commands,
            "perplexity",
            perplexity.run,
            "Perplexity over long text: dense, plain window, window recomputed, sinks + window. "
            "All variants score the same tokens.",
            "paged-stream perplexity book.txt --tokens 8192 --window-size 508 --plot curves.png\n"
            "  paged-stream perplexity book.txt --ablation sinks\n"
            "  paged-stream perplexity *.txt --modes streaming --tokens 4000000 --cycle "
            "--save-stream run.stream",
        )
    )
    streameval.add_options(
        add_command(
            commands,
            "streameval",
            streameval.run,
            "Questions about a stream while it grows: recall against distance. What has left the "
            "window is not found.",
            "paged-stream streameval --cache 512 1024 --distances 10 20 40 --plot recall.png",
        )
    )
    dialogue.add_options(
        add_command(
            commands,
            "dialogue",
            dialogue.run,
            "Questions with known answers one after the other in one stream, by exact match; "
            "one-shot asks each in a stream of its own.",
            "paged-stream dialogue questions.jsonl --cache 1024 --plot dialogue.png",
        )
    )
    attention_map.add_options(
        add_command(
            commands,
            "attention-map",
            attention_map.run,
            "How attention is spread: average logits per layer and head, and the share of the "
            "first tokens.",
            "paged-stream attention-map book.txt --plot map.png",
        )
    )
