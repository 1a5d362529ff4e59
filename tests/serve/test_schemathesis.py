"""schemathesis, in an environment of its own, finds no request that a service answers otherwise
than its OpenAPI document says."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.serve.services import serve_engine

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
)


@pytest.mark.clients_check
def test_every_operation_answers_as_described(install, folder, tmp_path):
    python = install(["schemathesis"])
    with serve_engine(folder, state_dir=tmp_path, request_seconds=5) as base:
        command = [python.parent / "schemathesis", "run", f"{base}/openapi.json", "--seed", "1"]
        command += ["--phases", "coverage,fuzzing", "--max-examples", "10", "--warnings", "off"]
        command += ["--checks", ",".join(CHECKS), "--request-timeout", "60"]
        hooks = Path(__file__).with_name("schemathesis_hooks.py")
        subprocess.run(
            command, check=True, cwd=tmp_path, env=os.environ | {"SCHEMATHESIS_HOOKS": str(hooks)}
        )
