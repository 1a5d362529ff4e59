"""``paged-stream generate``: a prompt and what follows it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from paged_stream.commands.command import Command
from paged_stream.commands.options import engine_group, sampling_group
from paged_stream.commands.output import Meter, show
from paged_stream.config import EngineConfig
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.system.progress_bar import DELAY_SECONDS, progress_bar
from paged_stream.text.text_file import decode_text, read_text

if TYPE_CHECKING:
    from paged_stream.engine.outputs import RequestDelta
    from paged_stream.engine.stream import Stream

# The stream's turns have the seed, and there is one stream.
ENGINE = engine_group(without=("seed", "max_num_seqs", "lora_modules"))
SAMPLING = sampling_group(max_tokens=256, temperature=0.8, top_p=0.95, repetition_penalty=1.1)
_SHOWN = 2000  # last characters of a prompt that a terminal shows


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="the prompt; standard input if left out")
    parser.add_argument(
        "-f", "--file", type=Path, metavar="FILE", help="read the prompt from a UTF-8 file"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print no text but, at the end, one JSON object on a line: model, text, token_ids, "
        "finish_reason (stop, length, error, or abort after Ctrl-C) and usage (prompt_tokens, "
        "completion_tokens, total_tokens)",
    )


def run(args: argparse.Namespace) -> int:
    """Generate; 130 if Ctrl-C ended it.

    Raises:
        ValueError: options, or a prompt that is empty or no UTF-8 text.
        OSError: the file cannot be read.
    """
    params = SamplingParams(**SAMPLING.read(args))
    config = EngineConfig(**ENGINE.read(args), max_num_seqs=1)
    prompt = _prompt(args)
    from paged_stream.engine.llm_engine import LLMEngine

    engine = LLMEngine(config)
    with closing(engine), engine.open_stream() as stream:
        prompt_ids = engine.intake.prompts.truncate(engine.encode(prompt), params)
        _append(stream, prompt_ids, engine.config.max_num_batched_tokens)
        deltas = stream.generate(params)
        if args.json:
            return _print_json(stream, deltas, str(config.model), len(prompt_ids))
        is_long = sys.stdout.isatty() and len(prompt) > _SHOWN
        sys.stdout.write("[...]" + prompt[-_SHOWN:] if is_long else prompt)
        return 0 if show(stream, deltas) else 130


def _prompt(args: argparse.Namespace) -> str:
    if args.file is not None:
        if args.prompt is not None:
            raise ValueError(f"prompt and file are both given, {args.file} is one too many")
        prompt = read_text(args.file)
    elif args.prompt is not None:
        prompt = args.prompt
    else:
        if sys.stdin.isatty():
            print("type the prompt; Ctrl-D on an empty line ends it", file=sys.stderr)
        prompt = decode_text(sys.stdin.buffer.read(), "standard input")
    if not prompt:  # before the model is loaded
        raise ValueError("prompt must not be empty")
    return prompt


def _append(stream: Stream, token_ids: Sequence[int], step: int) -> None:
    """Append a prompt, and show how far it is if it is long."""
    with progress_bar(
        total=len(token_ids),
        unit=" tok",
        desc="reading the prompt",
        delay=DELAY_SECONDS,
        leave=False,
    ) as bar:
        for start in range(0, len(token_ids), step):
            piece = token_ids[start : start + step]
            stream.append(piece)
            bar.update(len(piece))


def _print_json(
    stream: Stream, deltas: Iterable[RequestDelta], model: str, num_prompt_tokens: int
) -> int:
    meter = Meter(stream)
    text, token_ids, reason = "", [], None
    try:
        for delta in deltas:
            meter.count(delta)
            text += delta.delta_text
            token_ids += delta.delta_token_ids
            reason = delta.finish_reason
    except KeyboardInterrupt:
        reason = "abort"
    usage = {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": len(token_ids),
        "total_tokens": num_prompt_tokens + len(token_ids),
    }
    answer = {"model": model, "text": text, "token_ids": token_ids, "finish_reason": reason}
    print(json.dumps(answer | {"usage": usage}))
    print(meter.summary(), file=sys.stderr)
    return 130 if reason == "abort" else 0


COMMAND = Command(
    name="generate",
    description="Continue a prompt of any length, past the window as far as you like.",
    example=(
        'paged-stream generate "The sea was calm" --max-tokens 2000 --window-size 256\n'
        "paged-stream generate --file chapter.txt --json | jq .usage"
    ),
    arguments="[PROMPT]",
    groups=(ENGINE, SAMPLING),
    add_options=add_options,
    run=run,
)
