"""Libraries that talk to OpenAI's API, each in an environment of its own, against a service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.serve.services import serve_engine

CLIENTS = {"langchain": ["langchain-openai"], "instructor": ["instructor"]}


@pytest.fixture
def install(tmp_path):
    """Makes an environment with some packages; returns its Python."""

    def make(packages):
        subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
        python = tmp_path / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        return python

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client(name, install, folder):
    pytest.importorskip("llguidance")
    python = install(CLIENTS[name])
    script = Path(__file__).parent / f"client_{name}.py"
    with serve_engine(folder) as base:
        [model] = requests.get(f"{base}/v1/models").json()["data"]
        subprocess.run([python, script, f"{base}/v1", model["id"]], check=True)
