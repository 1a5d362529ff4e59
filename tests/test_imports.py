"""Imports go one way only; the table is the architecture."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each layer may import itself and what stands to its right.
ALLOWED = {
    "__main__": {"cli"},
    "cli": {"__version__", "commands", "evaluation", "info"},
    "commands": {
        "batch",
        "config",
        "engine",
        "evaluation",
        "models",
        "scheduler",
        "serve",
        "system",
        "text",
    },
    "evaluation": {
        "attention",
        "config",
        "engine",
        "models",
        "scheduler",
        "system",
        "text",
        "worker",
    },
    "serve": {"engine", "pool", "scheduler"},
    "pool": {"config", "engine", "scheduler", "system", "text"},
    "batch": {
        "__version__",
        "config",
        "engine",
        "info",
        "models",
        "scheduler",
        "system",
        "text",
    },
    "info": {"config", "engine", "models", "ops", "scheduler", "system", "worker"},
    "engine": {"config", "executor", "models", "scheduler", "system", "text"},
    "text": {"engine", "models", "scheduler"},
    "executor": {"config", "layers", "models", "scheduler", "system", "worker"},
    "worker": {"attention", "config", "layers", "models", "ops", "scheduler", "system"},
    "models": {"attention", "layers", "ops", "system"},
    "layers": {"ops"},
    "attention": {"ops"},
    "ops": {"_C"},
    "config": {"scheduler", "setting_hints"},
    "setting_hints": {"scheduler"},
    "system": set(),
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
