"""``paged-stream chat``: questions and answers, and commands about the conversation."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from paged_stream.commands.command import Command
from paged_stream.commands.conversations import Conversations
from paged_stream.commands.line_reader import ReadLine, line_reader
from paged_stream.commands.options import engine_group, sampling_group
from paged_stream.commands.output import show
from paged_stream.config import EngineConfig
from paged_stream.scheduler.sampling_params import SamplingParams

ENGINE = engine_group(without=("seed", "max_num_seqs", "lora_modules"))
SAMPLING = sampling_group(max_tokens=512, temperature=0.6, top_p=0.95, repetition_penalty=1.1)


class Action(NamedTuple):
    """What a line that begins with its name does.

    Args:
        usage: arguments; optional ones in brackets.
        run: takes what follows the name, and returns what is to be printed.
    """

    usage: str
    help: str
    run: Callable[[Conversations, str], str]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", help="system message (default: the model's own)")


def run(args: argparse.Namespace) -> int:
    """Chat until the user leaves.

    Raises:
        ValueError: options, or a model that cannot chat.
    """
    params = SamplingParams(**SAMPLING.read(args))
    config = EngineConfig(**ENGINE.read(args), max_num_seqs=1)
    from paged_stream.engine.llm_engine import LLMEngine

    engine = LLMEngine(config)
    with closing(engine):
        engine.intake.prompts.chat_tokenizer()  # says what is missing before the first question
        window = engine.sink_window
        print(
            f"{args.model}: {window.num_sink_tokens} sink tokens, window {window.window_size}; "
            "/help lists the commands"
        )
        with closing(Conversations(engine, args.system)) as conversations:
            talk(conversations, params, line_reader(list(COMMANDS)))
    return 0


def talk(conversations: Conversations, params: SamplingParams, read_line: ReadLine) -> None:
    """Answer lines until the user leaves; what goes wrong is said, and the chat goes on."""
    while True:
        print()
        name = "" if conversations.names == ["main"] else conversations.name
        try:
            line = read_line(f"{name}> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print("(Ctrl-D or /exit leaves)")
            continue
        try:
            _answer(conversations, params, line)
        except EOFError:
            return
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)


def _answer(conversations: Conversations, params: SamplingParams, line: str) -> None:
    """Do what one line asks for.

    Raises:
        ValueError, OSError: what was wrong.
        EOFError: to leave.
    """
    if line.startswith("/") and not line.startswith("//"):
        print(run_command(conversations, line))
    elif line:
        line = line.removeprefix("/") if line.startswith("//") else line
        deltas = conversations.ask(line, params)
        show(conversations.current.stream, deltas)


def run_command(conversations: Conversations, line: str) -> str:
    """Do what a command asks for; returns what to say about it.

    Raises:
        ValueError, OSError: what was wrong; everything is as before.
        EOFError: to leave.
    """
    name, _, rest = line.partition(" ")
    if name not in COMMANDS:
        similar = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {similar[0]}?" if similar else "/help lists them, // begins a message"
        raise ValueError(f"there is no command {name}; {hint}")
    command, rest = COMMANDS[name], rest.strip()
    required = sum(not word.startswith("[") for word in command.usage.split())
    if bool(rest) != bool(command.usage) and (rest or required):
        raise ValueError(f"usage: {f'{name} {command.usage}'.rstrip()}")
    try:
        return command.run(conversations, rest)
    except RuntimeError as error:  # no room for another conversation
        raise ValueError(str(error)) from error


def _help(conversations: Conversations, rest: str) -> str:
    width = max(len(f"{name} {command.usage}") for name, command in COMMANDS.items())
    lines = [f"{f'{n} {c.usage}':<{width}}  {c.help}" for n, c in COMMANDS.items()]
    lines += [
        f"{'//TEXT':<{width}}  say /TEXT to the model",
        "Ctrl-C interrupts an answer. Enter sends a message, Alt-Enter begins a new line in it.",
    ]
    return "\n".join(lines)


def _save(conversations: Conversations, rest: str) -> str:
    length = conversations.save(Path(rest).expanduser())
    return f"saved {length:,} tokens in {rest}"


def _load(conversations: Conversations, rest: str) -> str:
    length = conversations.load(Path(rest).expanduser())
    return f"the conversation of {rest} goes on, after {length:,} tokens"


def _fork(conversations: Conversations, rest: str) -> str:
    old = conversations.name
    return f"{conversations.fork(rest or None)} goes on from here; {old} stays as it is"


def _switch(conversations: Conversations, rest: str) -> str:
    if rest:
        conversations.switch(rest)
        return f"{rest} goes on"
    return f"{conversations.name}, of {', '.join(conversations.names)}"


def _rewind(conversations: Conversations, rest: str) -> str:
    count = _number("N", rest or "1")
    conversations.rewind(count)
    return f"forgot {count} turn{'s' if count > 1 else ''}"


def _cut(conversations: Conversations, rest: str) -> str:
    words = rest.split()
    if len(words) != 2:
        raise ValueError("usage: /cut START END")
    start, end = _number("START", words[0]), _number("END", words[1])
    conversations.cut(start, end)
    return f"cut {end - start:,} tokens out"


def _pin(conversations: Conversations, rest: str) -> str:
    old = conversations.name
    name = conversations.pin(rest)
    return f"pinned; {name} begins anew" + (f", {old} stays as it is" if name != old else "")


def _stats(conversations: Conversations, rest: str) -> str:
    return conversations.describe()


def _number(name: str, text: str) -> int:
    try:
        return int(text.replace(",", ""))
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got {text!r}") from None


def _exit(conversations: Conversations, rest: str) -> str:
    raise EOFError


COMMANDS = {
    "/help": Action("", "this list", _help),
    "/save": Action("FILE", "write the conversation to a file", _save),
    "/load": Action("FILE", "go on with a saved conversation instead of this one", _load),
    "/fork": Action("[NAME]", "go on in a copy of the conversation", _fork),
    "/switch": Action("[NAME]", "go to another conversation, or list them", _switch),
    "/rewind": Action("[N]", "forget the last N turns, questions and answers (1)", _rewind),
    "/cut": Action("START END", "take tokens out of the window, by position", _cut),
    "/pin": Action("TEXT", "begin anew with TEXT in a system message that stays visible", _pin),
    "/stats": Action("", "tokens, memory, conversations, and the positions of the turns", _stats),
    "/exit": Action("", "leave", _exit),
}
COMMAND = Command(
    name="chat",
    description=(
        "Talk with a model for as long as you like. The KV cache stays between turns, in constant "
        "memory. Ctrl-C interrupts an answer, Ctrl-D or /exit leaves, /help lists the commands."
    ),
    example="paged-stream chat --window-size 2048",
    groups=(ENGINE, SAMPLING),
    add_options=add_options,
    run=run,
)
