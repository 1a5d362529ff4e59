"""Alters files of whole models and loads them: an engine that answers, or one short ValueError.

A process of its own: it limits its memory to little more than it has after it has loaded a whole
model, and ends what takes too long.
"""

from __future__ import annotations

import argparse
import logging
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

import torch

from paged_stream import EngineConfig, LLMEngine, SamplingParams
from tests.model_files_fuzz.alterations import alteration_of
from tests.model_files_fuzz.originals import write_originals

SECONDS, BYTES, CHARACTERS = 60, 200 << 20, 1500


def load(model: Path, cache: Path) -> None:
    """Start an engine on a model, and let it answer if it has a tokenizer."""
    config = EngineConfig(
        model=str(model),
        cache_dir=cache,
        window_size=24,
        num_threads=1,
        max_num_seqs=2,
        kv_cache_memory_bytes="1MiB",
        parking_memory_bytes=0,
    )
    with LLMEngine(config) as engine:
        prompt = "hello" if engine.tokenizer is not None else [1, 2]
        engine.generate(prompt, SamplingParams(max_tokens=2), use_tqdm=False)


def fault_of(error: BaseException, model: Path) -> str | None:
    """What is wrong with an error; ``None`` if it is as it has to be."""
    if type(error) is not ValueError:
        return f"{type(error).__name__}: {str(error)[:500]!r}"
    text = str(error)
    if len(text) > CHARACTERS or not text.isprintable():
        return f"{len(text)} characters: {text[:300]!r}"
    if model.name not in text and "prompt" not in text:
        return f"it does not name the model: {text[:500]}"
    if re.search("MemoryError|[Aa]llocat|out of memory", text):
        return f"it asked for too much memory: {text[:500]}"
    return None


def alter(random: Random, model: Path) -> str:
    """Alter one file of a model; returns its name."""
    files = sorted(model.iterdir()) if model.is_dir() else [model]
    path = random.choice([path for path in files if path.suffix != ".jinja"])
    content = path.read_bytes()
    path.write_bytes(alteration_of(random, path)(random, content))
    return path.name


def run(seed: int, originals: dict[str, Path], folder: Path) -> tuple[str, str | None]:
    """Make one case; returns what came of it, and what is wrong with that."""
    random = Random(seed)
    original = originals[random.choice([*originals, "gguf", "safetensors"])]
    model = folder / f"fuzzed{original.suffix}"
    (shutil.copytree if original.is_dir() else shutil.copy)(original, model)
    name = alter(random, model)
    signal.alarm(SECONDS)
    try:
        load(model, folder / "cache")
        return "loaded", None
    except BaseException as error:
        fault = fault_of(error, model)
        return "refused", fault and f"seed {seed}, {original.name}/{name}: {fault}"
    finally:
        signal.alarm(0)


class _Hang(BaseException):
    """It took too long."""


def _end(number: int, frame: object) -> None:
    raise _Hang


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    options = parser.parse_args()
    logging.disable()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _end)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root:
        originals = write_originals(Path(root))
        for kind, model in originals.items():
            load(model, Path(root, "cache", kind))
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + BYTES, size + BYTES))
        for seed in range(options.first, options.last):
            with tempfile.TemporaryDirectory() as folder:
                outcome, fault = run(seed, originals, Path(folder))
            outcomes[outcome] += 1
            if fault:
                outcomes["faults"] += 1
                print(fault, file=sys.stderr, flush=True)
    counts = [f"{outcomes[name]} {name}" for name in ("loaded", "refused", "faults")]
    print(f"{options.last - options.first} cases: {', '.join(counts)}")
    sys.exit(outcomes["faults"] > 0)


if __name__ == "__main__":
    main()
