"""Writes on, sentence by sentence: tries several continuations and keeps the likeliest.

    python examples/best_of_n.py "It was a dark and stormy night" --sentences 5

The forks share the text so far in the cache; each computes only its own sentence.
"""

import argparse

from paged_stream import EngineConfig, LLMEngine, SamplingParams, Stream


def attempt(stream: Stream, max_tokens: int) -> tuple[float, str]:
    """Let a stream write one sentence; returns its mean log-probability, and the text."""
    params = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=max_tokens, logprobs=0)
    text, logprobs = "", []
    for delta in stream.generate(params):
        text += delta.delta_text
        logprobs += [entry.logprob for entry in delta.logprobs or ()]
        if text.endswith((".", "!", "?")):
            break
    return sum(logprobs) / len(logprobs), text


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("prompt")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--sentences", type=int, default=3)
    parser.add_argument("-n", type=int, default=4, help="continuations to choose from")
    parser.add_argument("--max-tokens", type=int, default=60)
    args = parser.parse_args(argv)

    engine = LLMEngine(EngineConfig(model=args.model, max_num_seqs=args.n))
    stream = engine.open_stream()
    stream.append(args.prompt)
    print(args.prompt, end="", flush=True)
    for _ in range(args.sentences):
        forks = [stream.fork() for _ in range(args.n)]
        scores = [attempt(fork, args.max_tokens) for fork in forks]
        best = max(range(args.n), key=lambda i: scores[i][0])
        print(scores[best][1], end="", flush=True)
        for loser in (stream, *(fork for fork in forks if fork is not forks[best])):
            loser.close()
        stream = forks[best]
    print()


if __name__ == "__main__":
    main()
