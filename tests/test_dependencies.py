"""What is imported is declared in pyproject.toml, and extras stay where they are needed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = {"paged_stream", "scheduler", "benchmarks", "tests"}
# The modules of the package that may import an extra, and which one.
NEEDS_EXTRA = {
    "paged_stream/commands/line_reader.py": "chat",
    "paged_stream/attention/xformers.py": "cuda",
    "paged_stream/commands/lm_eval.py": "eval",
    "paged_stream/evaluation/lm_eval_model.py": "eval",
    "paged_stream/evaluation/plot_style.py": "eval",
    "paged_stream/batch/columns.py": "ray",
    "paged_stream/batch/dataset.py": "ray",
    "paged_stream/batch/files.py": "ray",
    "paged_stream/batch/finding.py": "ray",
    "paged_stream/batch/footers.py": "ray",
    "paged_stream/batch/inputs.py": "ray",
    "paged_stream/batch/listing.py": "ray",
    "paged_stream/batch/parts.py": "ray",
    "paged_stream/batch/reading.py": "ray",
    "paged_stream/batch/shard_source.py": "ray",
    "paged_stream/batch/shard_worker.py": "ray",
    "paged_stream/batch/table_files.py": "ray",
    "paged_stream/batch/tables.py": "ray",
    "paged_stream/serve/app.py": "serve",
    "paged_stream/serve/bodies.py": "serve",
    "paged_stream/serve/clients.py": "serve",
    "paged_stream/serve/collector.py": "serve",
    "paged_stream/serve/completions.py": "serve",
    "paged_stream/serve/conversations.py": "serve",
    "paged_stream/serve/description.py": "serve",
    "paged_stream/serve/embeddings.py": "serve",
    "paged_stream/serve/errors.py": "serve",
    "paged_stream/serve/events.py": "serve",
    "paged_stream/serve/guards.py": "serve",
    "paged_stream/serve/heads.py": "serve",
    "paged_stream/serve/json_answers.py": "serve",
    "paged_stream/serve/live_socket.py": "serve",
    "paged_stream/serve/live_streams.py": "serve",
    "paged_stream/serve/metrics.py": "serve",
    "paged_stream/serve/models.py": "serve",
    "paged_stream/serve/openai_bodies.py": "serve",
    "paged_stream/serve/operations.py": "serve",
    "paged_stream/serve/page_files.py": "serve",
    "paged_stream/serve/prompt_limit.py": "serve",
    "paged_stream/serve/ray_app.py": "serve",
    "paged_stream/serve/response_bodies.py": "serve",
    "paged_stream/serve/responses.py": "serve",
    "paged_stream/serve/server.py": "serve",
    "paged_stream/serve/tokens.py": "serve",
    "paged_stream/serve/tools.py": "serve",
    "paged_stream/serve/traces.py": "serve",
    "paged_stream/serve/vllm_metrics.py": "serve",
    "paged_stream/text/structures.py": "structured",
}
INSTALLED = packages_distributions()
# Other engines and kernels that benchmarks compare with where someone installed them.
PEERS = {"flashinfer", "llama-cpp", "vllm"}
# Clients of a service, which are run in environments of their own.
CLIENTS = {
    "examples/clients/with_instructor.py": {"instructor", "openai"},
    "examples/clients/with_langchain.py": {"langchain-openai"},
    "examples/clients/with_litellm.py": {"litellm"},
    "examples/clients/with_llama_index.py": {"llama-index"},
    "examples/clients/with_openai.py": {"openai"},
    "examples/clients/with_pydantic_ai.py": {"pydantic-ai"},
    "tests/serve/client_instructor.py": {"instructor", "openai"},
    "tests/serve/client_langchain.py": {"langchain-core", "langchain-openai"},
    "tests/serve/client_litellm.py": {"litellm"},
    "tests/serve/client_llama_index.py": {"llama-index"},
    "tests/serve/client_pydantic_ai.py": {"pydantic-ai"},
    "tests/serve/schemathesis_hooks.py": {"schemathesis"},
}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(requirements: list[str]) -> set[str]:
    """Names of what is required; ``paged-stream[a,b]`` stands for what these extras require."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    names = set()
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[([\w, -]+)\])?", requirement)
        assert match is not None, requirement
        if normalised(match[1]) == PYPROJECT["project"]["name"]:
            names |= distributions([r for extra in match[2].split(",") for r in extras[extra]])
        else:
            names.add(normalised(match[1]))
    return names


def extra(name: str) -> set[str]:
    return distributions(PYPROJECT["project"]["optional-dependencies"][name])


BASE = distributions(PYPROJECT["project"]["dependencies"])


def allowed(path: str) -> set[str]:
    """The distributions that a file may import, by its path from the repository's root."""
    if path == "setup.py":
        return distributions(PYPROJECT["build-system"]["requires"])
    if path in NEEDS_EXTRA:
        return BASE | extra(NEEDS_EXTRA[path])
    if path in CLIENTS:
        return BASE | extra("serve") | CLIENTS[path]
    if path.startswith(("benchmarks/", "tests/")):
        return BASE | extra("dev") | (PEERS if path.startswith("benchmarks/") else set())
    return BASE


def imported(source: str) -> Iterator[str]:
    """The top-level packages that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.split(".")[0]


def providers(source: str) -> dict[str, set[str]]:
    """By imported package, the distributions that have it. One that is not installed is taken to be
    named as its package."""
    names = set(imported(source)) - OURS - sys.stdlib_module_names
    return {name: {normalised(d) for d in INSTALLED.get(name, [name])} for name in names}


def undeclared(path: str, source: str) -> list[str]:
    return sorted(name for name, found in providers(source).items() if not found & allowed(path))


def sources() -> list[str]:
    folders = ("paged_stream", "scheduler", "benchmarks", "tests", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted({str(path.relative_to(ROOT)) for path in (*files, ROOT / "setup.py")})


@pytest.mark.parametrize("path", sources())
def test_what_is_imported_is_declared(path):
    missing = undeclared(path, (ROOT / path).read_text())
    assert not missing, f"{path} imports {', '.join(missing)}: see pyproject.toml and NEEDS_EXTRA"


@pytest.mark.parametrize("path", NEEDS_EXTRA)
def test_who_may_import_an_extra_does(path):
    found = set().union(*providers((ROOT / path).read_text()).values())
    assert found & (extra(NEEDS_EXTRA[path]) - BASE), f"{path} needs no extra any more"


@pytest.mark.parametrize(
    ("path", "source", "missing"),
    [
        ("paged_stream/engine/llm_engine.py", "import pyarrow.parquet", ["pyarrow"]),  # of an extra
        (
            "paged_stream/engine/llm_engine.py",
            "def late():\n    from requests import get",
            ["requests"],
        ),
        ("paged_stream/attention/xformers.py", "import xformers.ops, ray", ["ray"]),
        ("tests/test_cli.py", "import vllm, psutil", ["vllm"]),
        ("examples/chat.py", "import hypothesis, torch, typing_extensions, json", ["hypothesis"]),
        ("setup.py", "import torch, numpy", ["numpy"]),
    ],
)
def test_an_undeclared_import_is_found(path, source, missing):
    assert undeclared(path, source) == missing
