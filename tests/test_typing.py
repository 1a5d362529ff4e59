"""Type checkers understand the package: they pass a client that is right, and find mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLIENT = Path(__file__).parent / "typing" / "client.py"
# What stands in the client once, and what somebody may write instead.
MISTAKES = [
    ("    AsyncLLMEngine,\n", "    AsyncLLMEngin,\n"),
    ("llm:\n        outputs: list[RequestOutput]", "llm:\n        outputs: RequestOutput"),
    ("window_size=1024, num_sink_tokens", "windowsize=1024, num_sink_tokens"),
    ("num_sink_tokens=4,", 'num_sink_tokens="four",'),
    ("dtype=torch.bfloat16", "dtype=16"),
    ("max_tokens=64", "max_token=64"),
    ('on_rewrite="cut"', 'on_rewrite="drop"'),
    ('pin="rules", tools=[]', 'pin="rules", tool=[]'),
    ('stop=["\\n"]', "stop=3"),
    ("llm.generate([1, 2, 3])", "llm.generate(1.5)"),
    ('[{"prompt": "one"}, {"prompt_token_ids"', '[{"promt": "one"}, {"prompt_token_ids"'),
    ('text: TextPrompt = {"prompt": "three"}', 'text: TextPrompt = {"prompt": 3}'),
    ("output.metrics.arrival_time", "output.metrics.arrival"),
    ("of_one: list[float | None] =", "of_one: list[list[float | None]] ="),
    ('llm.score(["one", text, [1, 2, 3]])', "llm.score(text)"),
    ("vectors[0].outputs.embedding", "vectors[0].embedding"),
    ('{"role": "user", "content": "hello"}', '"hello"'),
    ("scores: list[float | None]", "scores: list[float]"),
    ('Literal["stop", "length", "abort", "error"] | None', 'Literal["stop", "length"]'),
    ("entry.logprob for", "entry.log_prob for"),
    ("engine = LLMEngine(config)", 'engine = LLMEngine("a model")'),
    ("priority=1", 'priority="high"'),
    ("on_evict=lambda a, b: told.append((a, b))", "on_evict=lambda a: told.append((a, a))"),
    ("delta.delta_text, delta.delta_token_ids", "delta.text, delta.delta_token_ids"),
    ("stream.generate(GREEDY)) as", "stream.generate(GREEDY, 3)) as"),
    ("branch.cut(3, 5)", "branch.cut(3)"),
    ("branch.rewind(stream.position - 1)", "branch.rewind(stream.position() - 1)"),
    ('Literal["cache", "host", "disk", "none"]', 'Literal["cache"]'),
    ("overall.num_blocks +", "overall.num_block +"),
    ('    async for delta in engine.generate("a', '    for delta in engine.generate("a'),
    ('GREEDY, request_id="mine"', "GREEDY, request_id=5"),
    ("async with await engine.open_stream(", "async with engine.open_stream("),
    ('kv_cache_memory_bytes="4GiB"', "kv_cache_memory_bytes=[4]"),
    ("num_replicas=2, window_size", "num_replica=2, window_size"),
    ("RayLLM(str(folder), num_replicas=2) as", 'RayLLM(str(folder), num_replicas="2") as'),
]


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    """The client as ``client.py``, and with each mistake alone as ``mistake_N.py``."""
    folder = tmp_path_factory.mktemp("clients")
    right = CLIENT.read_text()
    (folder / "client.py").write_text(right)
    for index, (old, new) in enumerate(MISTAKES):
        assert right.count(old) == 1, old
        (folder / f"mistake_{index}.py").write_text(right.replace(old, new))
    return folder


def mypy(folder: Path) -> dict[str, list[str]]:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir"]
    config = folder / "mypy.ini"
    config.write_text("[mypy]\n")
    done = subprocess.run(
        [*command, str(folder / "cache"), "--config-file", str(config), str(folder)],
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    found = re.findall(r"(\w+)\.py:\d+: error: (.*)", done.stdout)
    return {name: [text for file, text in found if file == name] for name, _ in found}


def pyright(folder: Path) -> dict[str, list[str]]:
    config = folder / "pyrightconfig.json"
    config.write_text(json.dumps({"typeCheckingMode": "standard"}))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "-p", str(config)]
    done = subprocess.run(
        [*command, "--pythonpath", sys.executable], capture_output=True, text=True
    )
    found: dict[str, list[str]] = {}
    for entry in json.loads(done.stdout)["generalDiagnostics"]:
        if entry["severity"] == "error":
            found.setdefault(Path(entry["file"]).stem, []).append(entry["message"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("check", [mypy, pyright])
def test_a_client_passes_and_each_mistake_is_found(clients, check):
    found = check(clients)
    assert found.get("client") is None
    missed = [MISTAKES[i] for i in range(len(MISTAKES)) if f"mistake_{i}" not in found]
    assert not missed
