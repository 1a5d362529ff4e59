"""Reads a log that never ends from a pipe, and says now and then what is going on.

    tail -f /var/log/syslog | python examples/summarise_log.py

The stream reads every line once. Each summary is written by a fork of it, which is thrown away, so
that the stream itself holds nothing but the log.
"""

import argparse
import sys

from paged_stream import EngineConfig, LLMEngine, SamplingParams


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--every", type=int, default=20, help="lines between two summaries")
    parser.add_argument("--max-tokens", type=int, default=60)
    args = parser.parse_args(argv)

    engine = LLMEngine(EngineConfig(model=args.model, max_num_seqs=2))
    params = SamplingParams(temperature=0.3, max_tokens=args.max_tokens)
    with engine.open_stream(pin="A system log, line by line:\n") as log:
        for number, line in enumerate(sys.stdin, 1):
            log.append(line)
            if number % args.every:
                continue
            with log.fork() as summary:
                summary.append("\nIn one sentence, what the lines above are about:")
                text = "".join(delta.delta_text for delta in summary.generate(params))
            # Small models begin with an empty line, and go on after the first one.
            print(f"[{number} lines] {text.strip().partition(chr(10))[0]}", flush=True)


if __name__ == "__main__":
    main()
