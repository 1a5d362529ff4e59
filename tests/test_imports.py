"""Imports go one way only; the table is the architecture."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each layer may import itself and what stands to its right.
ALLOWED = {
    "__main__": {"cli"},
    "cli": {"__version__", "commands", "distributed", "evaluation", "info"},
    "commands": {
        "engine",
        "stream",
        "config",
        "outputs",
        "progress_bar",
        "scheduler",
        "text_file",
    },
    "evaluation": {
        "commands",
        "progress_bar",
        "text_file",
        "engine",
        "stream",
        "tokenizer",
        "worker",
        "models",
        "attention",
        "config",
        "scheduler",
    },
    "async_engine": {
        "async_stream",
        "engine",
        "engine_thread",
        "chat",
        "inputs",
        "lifetime",
        "mailbox",
        "stream",
        "config",
        "outputs",
        "scheduler",
    },
    "async_stream": {
        "async_engine",
        "chat",
        "inputs",
        "lifetime",
        "mailbox",
        "stream",
        "stream_file",
        "outputs",
        "scheduler",
    },
    "engine_thread": {"engine", "lifetime", "mailbox"},
    "mailbox": {"lifetime", "outputs"},
    "lifetime": set(),
    "processor_quota": set(),
    "processor_threads": set(),
    "info": {"inputs", "processor_quota", "worker", "models", "ops", "config", "scheduler"},
    "llm": {"engine", "chat", "inputs", "lifetime", "config", "outputs", "scheduler"},
    "stream": {"engine", "chat", "inputs", "lifetime", "stream_file", "outputs", "scheduler"},
    "stream_file": {"kv_tokens", "scheduler"},
    "kv_tokens": set(),
    "chat": {"tokenizer"},
    "prompts": {"chat", "inputs", "tokenizer", "models", "scheduler"},
    "statistics": {"engine_core", "outputs"},
    "engine": {
        "engine_core",
        "prompts",
        "statistics",
        "executor",
        "scheduler",
        "chat",
        "inputs",
        "lifetime",
        "processor_quota",
        "processor_threads",
        "stream_file",
        "stream",
        "tokenizer",
        "models",
        "config",
        "outputs",
    },
    "engine_core": {"executor", "lifetime", "scheduler", "detokenizer", "outputs", "tokenizer"},
    "detokenizer": {"tokenizer"},
    "inputs": {"models", "scheduler"},
    "tokenizer": {"models"},
    "executor": {
        "worker",
        "models",
        "layers",
        "kv_tokens",
        "ray_extra",
        "config",
        "scheduler",
    },
    "ray_extra": set(),
    "distributed": {
        "llm",
        "async_engine",
        "async_stream",
        "engine",
        "chat",
        "info",
        "inputs",
        "lifetime",
        "tokenizer",
        "mailbox",
        "models",
        "progress_bar",
        "ray_extra",
        "stream",
        "stream_file",
        "config",
        "outputs",
        "scheduler",
        "__version__",
    },
    "worker": {
        "models",
        "attention",
        "layers",
        "ops",
        "kv_tokens",
        "processor_quota",
        "processor_threads",
        "config",
        "scheduler",
    },
    "models": {"layers", "attention", "ops", "kv_tokens", "progress_bar"},
    "layers": {"ops"},
    "attention": {"ops"},
    "ops": {"_C"},
    "outputs": {"scheduler"},
    "config": {"setting_hints", "scheduler"},
    "setting_hints": {"scheduler"},
    "progress_bar": set(),
    "text_file": set(),
    "scheduler": set(),
}
# What of the scheduler may be seen below the engine: its messages and what they are made of.
MESSAGES = {"output", "sampling_params", "sink_window"}


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.parent.name == "scheduler", "relative import"
            if node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from names if node.module == "paged_stream" else [node.module]


def modules():
    for path in sorted((ROOT / "paged_stream").rglob("*.py")):
        parts = path.relative_to(ROOT / "paged_stream").with_suffix("").parts
        if parts != ("__init__",):
            yield pytest.param(path, parts[0], id="/".join(parts))


@pytest.mark.parametrize(("path", "layer"), list(modules()))
def test_imports_point_downwards(path, layer):
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "paged_stream" or parts[1] == layer:
            continue
        assert parts[1] in ALLOWED[layer], f"{layer} must not import {name}"
        if parts[1] == "scheduler" and layer in {"executor", "worker"}:
            assert parts[2] in MESSAGES, f"{layer} must not see {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "scheduler").glob("*.py")), ids=lambda p: p.stem)
def test_scheduler_uses_the_standard_library_only(path):
    import sys

    for name in imports(path):
        assert name.split(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"
