"""The engine on a device against the engine on the CPU: the same weights, the same tokens.

Models are random and small. In float32 greedy tokens must be equal, whatever the steps are made
of: one or several per launch, recorded or not, parked in between. Other dtypes and backends must
give nearly the same probabilities.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.sections import Case, Section
from paged_stream import LLM, EngineConfig, LLMEngine, SamplingParams
from tests.family_reference import ABSOLUTE_POSITION_VARIANTS, random_ids, tiny_model
from tests.reference import tiny_llama

_NUM_TOKENS = 40
_SINKS, _WINDOW = 4, 24
# The shape of the model that ships as a package.
_SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
}


def engine_cases(section: Section) -> list[Case]:
    """Families of tiny models, then a model of 30 layers, in all that an engine can be set to."""
    kinds: dict[str, Callable[..., None]] = dict.fromkeys(section.sizes.families, _same)
    kinds |= {"smollm2": _same, "dtypes": _nearly, "memory": _measured, "parking": _parks}
    return [Case(name, partial(_check, name=name, check=check)) for name, check in kinds.items()]


def _check(section: Section, *, name: str, check: Callable[..., None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        window: int | None = _WINDOW
        if name in section.sizes.families:
            model = tiny_model(name)
            prompts = [random_ids(model, count, seed=count) for count in (5, 40, 90)]
            window = None if name in ABSOLUTE_POSITION_VARIANTS else _WINDOW
        else:
            is_tiny = section.sizes.repeats <= 2
            small = {"num_hidden_layers": 2, "vocab_size": 500} if is_tiny else {}
            model = tiny_llama(1, **_SMOLLM2 | small)
            prompts = [random_ids(model, count, seed=count) for count in (17, 60, 100)]
        model.save_pretrained(folder)
        check(section, name, Path(folder), prompts, window)


def _settings(window: int | None, **settings: Any) -> dict[str, Any]:
    return {
        "num_sink_tokens": _SINKS,
        "window_size": window,
        "dtype": "float32",
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "kv_cache_memory_bytes": 128 << 20,
    } | settings


def _tokens(folder: Path, prompts: list[list[int]], settings: dict[str, Any]) -> list[list[int]]:
    llm = LLM(str(folder), **settings)
    # Rows that end at different times, and one request that draws.
    params = [
        SamplingParams(temperature=0.0, max_tokens=_NUM_TOKENS - 3 * i, ignore_eos=True)
        for i in range(len(prompts))
    ]
    params.append(SamplingParams(temperature=0.9, top_p=0.9, max_tokens=9, seed=5, ignore_eos=True))
    outputs = llm.generate([*prompts, prompts[0]], params, use_tqdm=False)
    tokens = [output.outputs[0].token_ids for output in outputs]
    del llm
    gc.collect()
    return tokens


def _same(
    section: Section, name: str, folder: Path, prompts: list[list[int]], window: int | None
) -> None:
    expected = _tokens(folder, prompts, _settings(window, device="cpu", num_decode_steps=1))
    for num_steps in (1, 8):
        for graphs in (False, True):
            settings = _settings(
                window, device=str(section.device), num_decode_steps=num_steps, cuda_graphs=graphs
            )
            label = f"{name}, {num_steps} steps per launch, {'with' if graphs else 'no'} graphs"
            section.attempt(label, _compare, section, label, folder, prompts, settings, expected)


def _compare(
    section: Section,
    label: str,
    folder: Path,
    prompts: list[list[int]],
    settings: dict[str, Any],
    expected: list[list[int]],
) -> None:
    _record_equal(section, label, _tokens(folder, prompts, settings), expected)


def _record_equal(
    section: Section, label: str, actual: list[list[int]], expected: list[list[int]]
) -> None:
    places = [
        next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), None)
        for a, b in zip(actual, expected, strict=True)
    ]
    section.record(label, ok=actual == expected, first_differences=places)


def _parks(
    section: Section, name: str, folder: Path, prompts: list[list[int]], window: int | None
) -> None:
    """Streams that take turns in a cache that does not hold them all."""
    section.attempt(f"{name}: streams that take turns", _take_turns, section, name, folder, prompts)


def _take_turns(section: Section, name: str, folder: Path, prompts: list[list[int]]) -> None:
    runs = []
    for device in ("cpu", str(section.device)):
        layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
        bytes_per_token = 2 * 4 * 3 * 64 * layers
        settings = _settings(_WINDOW, device=device, enable_prefix_caching=False)
        # Two streams of a sink block and three or more of the ring.
        settings["kv_cache_memory_bytes"] = bytes_per_token * 16 * 14
        engine = LLMEngine(EngineConfig(model=str(folder), **settings))
        streams = [engine.open_stream() for _ in range(6)]
        answers, was_parked = [], False
        params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
        for turn in range(3):
            for index, stream in enumerate(streams):
                stream.append(prompts[(index + turn) % len(prompts)][:20])
                answers.append(
                    [i for delta in stream.generate(params) for i in delta.delta_token_ids]
                )
            was_parked |= any(stream.stats().location != "cache" for stream in streams)
        for stream in streams:
            stream.close()
        runs.append((answers, was_parked))
        del engine
        gc.collect()
    section.record(f"{name}: streams left the cache", ok=runs[0][1] and runs[1][1])
    _record_equal(section, f"{name}: tokens after coming back", runs[1][0], runs[0][0])


def _nearly(
    section: Section, name: str, folder: Path, prompts: list[list[int]], window: int | None
) -> None:
    """Log-probabilities of prompts longer than the window, by dtype and backend: at most some
    times as far from float32's as those of the CPU in bfloat16."""
    expected = _scores(folder, prompts, _settings(window, device="cpu"))

    def distance(device: str, chunk: int, options: dict[str, Any]) -> float:
        options = options | {"max_num_seqs": 1, "max_num_batched_tokens": chunk}
        scores = _scores(folder, prompts, _settings(window, device=device, **options))
        return float((scores - expected).abs().mean())

    plain, int8 = {"dtype": "bfloat16"}, {"dtype": "bfloat16", "kv_cache_dtype": "int8"}
    allowed = {kind: distance("cpu", 64, options) for kind, options in (("", plain), ("8", int8))}
    # Right sums in two orders were twice as far from float32 as each other in a small random model.
    kinds: dict[str, tuple[dict[str, Any], float]] = {
        "bfloat16": (plain, 2.5 * allowed[""]),
        "float16": ({"dtype": "float16"}, 2.5 * allowed[""]),
        "int8 cache": (int8, 2.5 * allowed["8"]),
        "fp8 cache": (plain | {"kv_cache_dtype": "fp8"}, 4 * allowed["8"]),
    }
    if importlib.util.find_spec("xformers") is None:
        section.skip(f"{name}: xformers", "it is not installed")
    else:
        kinds["xformers"] = plain | {"attention_backend": "xformers"}, 2.5 * allowed[""]
    for kind, (options, limit) in kinds.items():
        for chunk in (64, 1):  # single tokens go through the kernels for decoding
            label = f"{name}: {kind}, chunks of {chunk}"
            found = section.attempt(label, distance, str(section.device), chunk, options)
            if found is not None:
                values = {"difference": f"{found:.4f}", "limit": f"{limit:.4f}"}
                section.record(label, ok=found <= limit, **values)


def _measured(
    section: Section, name: str, folder: Path, prompts: list[list[int]], window: int | None
) -> None:
    """A cache that takes what the largest step has left."""
    section.attempt(f"{name}: measured cache", _fill, section, name, folder, prompts, window)


def _fill(
    section: Section, name: str, folder: Path, prompts: list[list[int]], window: int | None
) -> None:
    settings = _settings(window, device=str(section.device), dtype="bfloat16")
    settings |= {"kv_cache_memory_bytes": None, "gpu_memory_utilization": 0.3}
    engine = LLMEngine(EngineConfig(model=str(folder), **settings))
    num_bytes = engine.cache_plan.num_bytes
    section.record(f"{name}: a cache of {num_bytes >> 20} MiB was measured", ok=num_bytes > 0)
    stream = engine.open_stream()
    stream.append(prompts[-1])
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    tokens = [i for delta in stream.generate(params) for i in delta.delta_token_ids]
    section.record(f"{name}: a stream runs in it", ok=len(tokens) == 5)


def _scores(folder: Path, prompts: list[list[int]], settings: dict[str, Any]) -> torch.Tensor:
    """Log-probabilities of the prompts' tokens."""
    llm = LLM(str(folder), **settings)
    known = [score for prompt in prompts for score in llm.score(prompt, use_tqdm=False)[1:]]
    del llm
    gc.collect()
    return torch.tensor(known, dtype=torch.float64)
