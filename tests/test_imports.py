"""Imports go one way only: the table of rooms is the architecture, and no files form a circle."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What each room may see beside itself: rooms, or single modules of them. A room is a folder or a
# module of the root package.
ALLOWED = {
    "": {"config", "engine", "pool", "scheduler.sampling_params", "scheduler.structured_outputs"}
    | {"serve", "text", "version"},
    "__main__": {"cli"},
    "cli": {"commands", "version"},
    "commands": {"batch", "config", "engine", "evaluation", "info", "models", "pool.pool_options"}
    | {"scheduler", "serve", "setting_hints", "system", "text"},
    "info": {"config", "engine", "models", "ops", "scheduler", "system", "worker"},
    "evaluation": {"attention", "config", "engine", "models", "ops", "scheduler"}
    | {"setting_kinds", "system", "text", "worker"},
    "serve": {"config", "engine", "pool", "scheduler.fields", "scheduler.sampling_params"}
    | {"scheduler.settings", "scheduler.structured_outputs", "scheduler.word_fields"}
    | {"setting_kinds", "system", "text", "version"},
    # A batch of OpenAI's requests is a service that nobody listens to.
    "batch": {"config", "engine.async_engine", "info", "models", "scheduler.fields"}
    | {"scheduler.sampling_params", "scheduler.settings", "scheduler.word_fields", "serve.app"}
    | {"serve.engine_backend", "serve.serve_options", "system", "text", "version"},
    "pool": {"config", "engine", "scheduler.fields", "scheduler.sampling_params"}
    | {"scheduler.settings", "scheduler.sink_window", "setting_kinds", "system", "text"},
    "engine": {"config", "executor", "models", "scheduler", "system", "text", "version"},
    "text": {"scheduler.sampling_params", "scheduler.structured_outputs", "system"},
    # Below the engine, the scheduler is its messages and what they are made of.
    "executor": {"config", "layers", "models", "scheduler.output", "scheduler.sink_window"}
    | {"system", "worker"},
    "worker": {"attention", "config", "layers", "models", "ops", "scheduler.output"}
    | {"scheduler.sampling_params", "scheduler.sink_window", "system"},
    "models": {"attention", "layers", "ops", "system"},
    "layers": {"ops"},
    "attention": {"ops"},
    "ops": {"_C"},
    "config": {"scheduler.fields", "scheduler.hints", "scheduler.settings", "setting_hints"}
    | {"setting_kinds", "system"},
    "setting_hints": {"scheduler.sampling_params"},
    "setting_kinds": {"scheduler.fields", "scheduler.speculation", "scheduler.word_fields"},
    "system": set(),
    "version": set(),
    "scheduler": set(),
}

# What a service may see of engines and pools, and the classes that single modules of it make.
CONTRACT = {"engine.api", "engine.lifetime", "engine.lora_request", "engine.outputs"}
MAKERS = {
    "serve.server": {"engine.async_engine"},
    "serve.engine_backend": {"engine.async_engine"},
    "serve.ray_app": {"pool.async_ray_llm", "pool.pool_options"},
    "serve.collector": {"engine.async_engine", "engine.lifetime", "pool.errors"},
    "serve.metrics": {"pool.stats"},
    "serve.pool_backend": {"pool.async_ray_llm"},
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package, ``scheduler/`` included, by its name below ``paged_stream``."""
    found = {}
    for folder, prefix in ((ROOT / "paged_stream", ""), (ROOT / "scheduler", "scheduler.")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[(prefix + ".".join(parts)).removesuffix("__init__").rstrip(".")] = path
    return {name: path for name, path in found.items() if not name.startswith("_C")}


def imported(path: Path) -> Iterator[str]:
    """What a file imports, at its head or later, as full names of modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.parent.name == "scheduler", "a relative import"
            home = "paged_stream.scheduler" if node.level else ""
            module = ".".join(part for part in (home, node.module) if part)
            for alias in node.names:
                name = f"{module}.{alias.name}"
                is_module = name.removeprefix("paged_stream.") in {*modules(), "_C"}
                yield name if is_module else module


@cache
def ours(module: str) -> frozenset[str]:
    """Modules of the package that a module imports, by their names below ``paged_stream``."""
    names = (name.partition(".") for name in imported(modules()[module]))
    return frozenset(rest for package, _, rest in names if package == "paged_stream")


def room(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_room_sees_what_the_table_says(module):
    for name in ours(module):
        if room(name) != room(module):
            allowed = ALLOWED[room(module)]
            assert {name, room(name)} & allowed, f"{module} must not see {name}"


@pytest.mark.parametrize("module", sorted(m for m in modules() if room(m) == "serve"))
def test_a_service_sees_the_contract_only(module):
    seen = {name for name in ours(module) if room(name) in {"engine", "pool"}}
    assert seen <= CONTRACT | MAKERS.get(module, set())


def test_the_table_has_every_room_and_no_other():
    assert set(ALLOWED) == {room(module) for module in modules()}
    for name, allowed in ALLOWED.items():
        used = {seen for module in modules() if room(module) == name for seen in ours(module)}
        unused = {seen for seen in allowed if not any(seen in (each, room(each)) for each in used)}
        assert not unused, f"{name} does not use {unused}"


def test_no_circles():
    graph = {module: ours(module) for module in modules()}
    # Importing a module runs its package first, which hands names on when they are asked for.
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
    rooms: dict[str, set[str]] = {}
    for module in modules():
        if room(module):
            others = {room(name) for name in ours(module)} - {room(module), ""}
            rooms.setdefault(room(module), set()).update(others)
    TopologicalSorter(rooms).prepare()


@pytest.mark.parametrize("path", sorted((ROOT / "scheduler").glob("*.py")), ids=lambda p: p.stem)
def test_the_scheduler_uses_the_standard_library_only(path):
    for name in imported(path):
        package = name.split(".")[0]
        assert name.startswith("paged_stream.scheduler") or package in sys.stdlib_module_names
