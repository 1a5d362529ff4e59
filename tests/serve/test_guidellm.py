"""guidellm, in an environment of its own, measures a service as it measures others."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch

from tests.serve.services import serve_engine

REQUESTS, TOKENS = 12, 8


@pytest.mark.clients_check
def test_guidellm_gets_what_it_asks_for(install, folder, tmp_path):
    python = install([f"torch=={torch.__version__.partition('+')[0]}", "guidellm"])
    report = tmp_path / "report.json"
    with serve_engine(folder) as base:
        command = [python.parent / "guidellm", "run", "--disable-progress"]
        command += ["--backend", f"kind=openai_http,target={base}"]
        command += ["--tokenizer", f"kind=huggingface_auto,model={folder}"]
        command += ["--data", f"kind=synthetic_text,prompt_tokens=16,output_tokens={TOKENS}"]
        command += ["--profile", "kind=concurrent,streams=4"]
        command += ["--constraint", f"kind=max_requests,count={REQUESTS}"]
        command += ["--output", f"kind=json,path={report}"]
        subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals == {"successful": REQUESTS, "errored": 0, "incomplete": 0, "total": REQUESTS}
    answers = benchmark["requests"]["successful"]
    assert {answer["output_tokens"] for answer in answers} == {TOKENS}
