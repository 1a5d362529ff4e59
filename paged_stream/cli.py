"""The command line: ``paged-stream generate | chat | batch | serve | info`` and
the evaluations."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from paged_stream.distributed import command as batch_command
from paged_stream.distributed import serve_command
from paged_stream.evaluation.commands import add_commands as add_evaluation_commands

if TYPE_CHECKING:
    from paged_stream.outputs import RequestDelta
    from paged_stream.stream import Stream

_STATUS_SECONDS = 0.5
_LOG_SECONDS = 5.0
_DEFAULT_MODEL = "smollm2-135m-instruct"


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="paged-stream", description="Language models on text that never ends."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    generate = _command(
        commands,
        "generate",
        _generate,
        "Continue a prompt of any length, past the window as far as you like.",
        'paged-stream generate "The sea was calm" --max-tokens 2000 --window-size 256',
    )
    generate.add_argument("prompt", nargs="?", help="the prompt; standard input if left out")
    _add_engine_options(generate)
    _add_sampling_options(generate, max_tokens=256, temperature=0.8)
    chat = _command(
        commands,
        "chat",
        _chat,
        "Talk with a model for as long as you like. The KV cache stays between turns, in constant "
        "memory. Ctrl-C interrupts an answer, Ctrl-D leaves.",
        "paged-stream chat --window-size 2048",
    )
    chat.add_argument("--system", help="system message (default: the model's own)")
    _add_engine_options(chat)
    _add_sampling_options(chat, max_tokens=512, temperature=0.6)
    batch = _command(commands, "batch", _batch, batch_command.DESCRIPTION, batch_command.EXAMPLE)
    batch_command.add_options(batch)
    _add_engine_options(batch)
    _add_sampling_options(batch, max_tokens=256, temperature=0.0)
    batch.set_defaults(top_p=1.0, repetition_penalty=1.0, seed=0)
    serve = _command(commands, "serve", _serve, serve_command.DESCRIPTION, serve_command.EXAMPLE)
    serve_command.add_options(serve)
    _add_engine_options(serve)
    info = _command(
        commands,
        "info",
        _info,
        "Plan capacity: KV bytes per token and stream, streams that fit, what this machine has.",
        "paged-stream info smollm2-135m-instruct --window-size 1024",
    )
    info.add_argument("name", nargs="?", metavar="MODEL", help=f"default: {_DEFAULT_MODEL}")
    _add_engine_options(info, model=False)
    add_evaluation_commands(commands, _command)
    return parser


def _command(
    commands: Any, name: str, run: Any, description: str, example: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=description.split(". ")[0].rstrip("."),
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_engine_options(parser: argparse.ArgumentParser, *, model: bool = True) -> None:
    group = parser.add_argument_group("engine")
    if model:
        group.add_argument(
            "--model",
            default=_DEFAULT_MODEL,
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
        type=lambda name: None if name == "none" else name,
        help="auto (GGUF files as they are), int8, int4 or none (default: %(default)s)",
    )
    group.add_argument(
        "--kv-cache-dtype", default="auto", help="auto, which is the model's, int8, or on CUDA fp8"
    )
    group.add_argument("--block-size", type=int, default=16)
    group.add_argument("--kv-cache-memory-bytes", type=int)
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


def _add_sampling_options(
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


def _engine_settings(args: argparse.Namespace) -> dict[str, Any]:
    names = (
        "num_sink_tokens",
        "window_size",
        "device",
        "dtype",
        "quantization",
        "kv_cache_dtype",
        "block_size",
        "kv_cache_memory_bytes",
        "gpu_memory_utilization",
        "attention_backend",
        "tensor_parallel_size",
        "num_decode_steps",
    )
    return {name: getattr(args, name) for name in names}


def _load(args: argparse.Namespace) -> Any:
    from paged_stream.config import EngineConfig
    from paged_stream.engine import LLMEngine

    return LLMEngine(EngineConfig(model=args.model, max_num_seqs=1, **_engine_settings(args)))


def _sampling_params(args: argparse.Namespace) -> Any:
    from paged_stream.scheduler.sampling_params import SamplingParams

    return SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        ignore_eos=args.ignore_eos,
    )


def _generate(args: argparse.Namespace) -> int:
    params = _sampling_params(args)
    prompt = sys.stdin.read() if args.prompt is None else args.prompt
    engine = _load(args)
    with engine.open_stream() as stream:
        stream.append(prompt)
        if sys.stdout.isatty():
            _show_long(stream, prompt, stream.generate(params))
        else:
            sys.stdout.write(prompt)
            _show(stream, stream.generate(params))
    return 0


def _chat(args: argparse.Namespace) -> int:
    params = _sampling_params(args)
    engine = _load(args)
    engine.chat_tokenizer()  # says what is missing before the first question
    # Pinned, the system message stays visible however long the conversation gets.
    pin = None if args.system is None else [{"role": "system", "content": args.system}]
    window = engine.sink_window
    print(f"{args.model}: {window.num_sink_tokens} sink tokens, window {window.window_size}")
    with engine.open_stream(pin=pin) as stream:
        while (content := _ask()) is not None:
            if not content:
                continue
            _show(stream, stream.chat(content, params))
    return 0


def _ask() -> str | None:
    try:
        return input("\n> ").strip()
    except EOFError:
        print()
        return None


def _show(stream: Stream, deltas: Iterable[RequestDelta]) -> None:
    """Print an answer as it comes and a summary at its end; Ctrl-C ends the answer."""
    meter = _Meter(stream)
    try:
        for delta in deltas:
            meter.count(delta)
            sys.stdout.write(delta.delta_text)
            sys.stdout.flush()
            if not sys.stdout.isatty() and meter.age > _LOG_SECONDS:
                print("\n" + meter.summary(), file=sys.stderr)
    except KeyboardInterrupt:
        pass
    print()
    print(meter.summary(), file=sys.stderr)


def _show_long(stream: Stream, prompt: str, deltas: Iterable[RequestDelta]) -> None:
    """Print a long text line by line, above a status line that shows speed and memory live."""
    meter = _Meter(stream)
    width = shutil.get_terminal_size().columns - 1
    line = " ".join(prompt.split())[-width:]
    with tqdm(bar_format="{desc}", mininterval=_STATUS_SECONDS) as bar:
        try:
            for delta in deltas:
                meter.count(delta)
                line += delta.delta_text
                while "\n" in line or len(line) > width:
                    head, line = _first_line(line, width)
                    bar.write(head)
                if meter.age > _STATUS_SECONDS:
                    bar.set_description_str(meter.summary())
        except KeyboardInterrupt:
            pass
        bar.write(line)
        bar.set_description_str(meter.summary())


def _first_line(text: str, width: int) -> tuple[str, str]:
    """Split at the first newline, or at the last space that fits the width."""
    newline = text.find("\n", 0, width + 1)
    if newline >= 0:
        return text[:newline], text[newline + 1 :]
    space = text.rfind(" ", 0, width + 1)
    return (text[:space], text[space + 1 :]) if space > 0 else (text[:width], text[width:])


class _Meter:
    """Counts the tokens of one turn and describes its stream."""

    def __init__(self, stream: Stream) -> None:
        self._last_summary = time.perf_counter()
        self._stream = stream
        self._num_tokens = 0
        self._started = 0.0

    @property
    def age(self) -> float:
        """Seconds since the last summary."""
        return time.perf_counter() - self._last_summary

    def count(self, delta: RequestDelta) -> None:
        if not delta.delta_token_ids:
            return
        if not self._num_tokens:
            self._started = time.perf_counter()  # the time before is the prompt's
        self._num_tokens += len(delta.delta_token_ids)

    def summary(self) -> str:
        self._last_summary = time.perf_counter()
        elapsed = self._last_summary - self._started
        speed = (self._num_tokens - 1) / elapsed if self._num_tokens > 1 else 0.0
        stats = self._stream.stats()
        return (
            f"[{self._num_tokens:,} tokens, {speed:.1f} tok/s | KV {stats.kv_bytes / 2**20:.2f} "
            f"MiB in {stats.num_blocks} blocks | stream {stats.num_tokens:,}: "
            f"{stats.num_visible_tokens:,} visible, {stats.num_evicted_tokens:,} evicted]"
        )


def _batch(args: argparse.Namespace) -> int:
    return batch_command.run(args, _engine_settings(args), _sampling_params(args))


def _serve(args: argparse.Namespace) -> int:
    return serve_command.run(args, _engine_settings(args))


def _info(args: argparse.Namespace) -> int:
    from paged_stream.info import describe

    print(describe(args.name or _DEFAULT_MODEL, **_engine_settings(args)))
    return 0
