"""``paged-stream lm-eval``: the real package, on tasks in local files, next to its own backend for
transformers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.float_folder import float_folder
from paged_stream import LLM, SamplingParams, cli
from paged_stream.commands import lm_eval as command
from paged_stream.models.formats.resolve import EMBEDDED_MODEL
from tests.evaluation.lm_eval_tasks import ROWS, TASKS, write_tasks
from tests.serve.services import serve_engine

OVER_HTTP = Path(__file__).parent / "lm_eval_over_http.py"
PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
FLOAT32 = ["--dtype", "float32", "--quantization", "none", "--kv-cache-memory-bytes", "512MiB"]


def test_what_lm_eval_is_given():
    settings = {name: setting.default for name, setting in command.ENGINE.settings.items()}
    settings |= {"window_size": 7, "device": "cpu"}
    given = command.run_arguments("ours", settings, ["--tasks", "a"])
    model = json.dumps({"model": EMBEDDED_MODEL, "window_size": 7})
    assert given[:7] == ["run", "--model", "ours", "--model_args", model, "--device", "cpu"]
    assert given[-2:] == ["--tasks", "a"]


def test_arguments_behind_the_dashes_are_left_to_lm_eval():
    words = ["lm-eval", "--window-size", "7", "--", "--tasks", "a", "--limit", "2", "--seed", "1"]
    args = cli.make_parser().parse_args(words)
    assert args.arguments == ["--tasks", "a", "--limit", "2", "--seed", "1"]
    assert args.window_size == "7"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lm-eval"], "pass lm-eval's arguments behind --"),
        (["lm-eval", "--window-size", "0", "--", "--tasks", "a"], "--window-size must be >= 1"),
        (["lm-eval", "--", "--tasks", "a"], 'pip install "paged-stream[eval]"'),
    ],
)
def test_what_is_wrong_is_said_at_once(monkeypatch, capsys, words, message):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err


def ours(words, folder, tmp_path):
    """Figures by task, and responses by task and document."""
    out = tmp_path / "ours"
    more = ["--include_path", str(tmp_path), "--output_path", str(out), "--log_samples"]
    command_line = ["lm-eval", "--model", str(folder), *FLOAT32, *words, "--tasks", *TASKS, *more]
    assert cli.main(command_line) == 0
    (results,) = out.rglob("results_*.json")
    responses = {}
    for task in TASKS:
        (samples,) = out.rglob(f"samples_{task}_*.jsonl")
        rows = map(json.loads, samples.read_text().splitlines())
        responses[task] = {row["doc_id"]: row["resps"] for row in rows}
    return json.loads(results.read_text())["results"], responses


def theirs(folder, tmp_path, **model_args):
    """As `ours`, of lm-eval's own backend."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"} | model_args,
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tmp_path)),
        device="cpu",
    )
    samples = found["samples"]
    return found["results"], {
        task: {row["doc_id"]: row["resps"] for row in samples[task]} for task in TASKS
    }


def flat(response):
    """The values of a response, which files hold as text."""
    if isinstance(response, list | tuple):
        return [value for each in response for value in flat(each)]
    return [response]


def as_number(value):
    return float({"True": 1, "False": 0}.get(str(value), value))


def assert_same(one, other):
    (figures, responses), (their_figures, their_responses) = one, other
    for task in TASKS:
        assert responses[task].keys() == their_responses[task].keys()
        for doc_id, response in responses[task].items():
            found, expected = flat(response), flat(their_responses[task][doc_id])
            if task != "answers":
                found = [as_number(value) for value in found]
                expected = pytest.approx([as_number(value) for value in expected], abs=1e-3)
            assert found == expected, f"{task}, document {doc_id}"
        names = {name for name, value in their_figures[task].items() if isinstance(value, float)}
        assert any(name.endswith(",none") for name in names)
        for name in names:
            # A random model's perplexity has 13 digits before the point.
            expected = pytest.approx(their_figures[task][name], abs=1e-3, rel=1e-5)
            assert figures[task][name] == expected, name


@pytest.fixture
def offline(monkeypatch, tmp_path):
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    write_tasks(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("max_length", [None, 48])
def test_a_small_model(offline, folder, tmp_path, max_length):
    limit = {} if max_length is None else {"max_length": max_length}
    words = [f"--model_args={name}={value}" for name, value in limit.items()]
    assert_same(ours(["--", *words], folder, tmp_path), theirs(folder, tmp_path, **limit))


@pytest.mark.clients_check
def test_over_http(offline, folder, tmp_path, install):
    """Its clients of OpenAI's API, against a service."""
    pytest.importorskip("fastapi")
    python = install(["lm_eval[api]>=0.4.13,<0.5"])
    with serve_engine(folder, window_size=500) as base:
        command = [python, OVER_HTTP, f"{base}/v1", folder, tmp_path]
        subprocess.run(command, check=True, capture_output=True)
    found = json.loads((tmp_path / "found.json").read_text())
    texts, chats = found["completions"], found["chats"]
    responses = {
        task: {int(doc_id): response for doc_id, response in each.items()}
        for task, each in texts["responses"].items()
    }
    assert_same((texts["figures"], responses), theirs(folder, tmp_path))
    llm = LLM(str(folder), window_size=500, dtype="float32")
    params = SamplingParams(temperature=0, max_tokens=24, stop=["\n", "."])
    for doc_id, response in chats["responses"]["answers"].items():
        question = ROWS["answers"][int(doc_id)]["question"]
        [answer] = llm.chat([{"role": "user", "content": question}], params, use_tqdm=False)
        assert flat(response) == [answer.outputs[0].text]


@pytest.mark.slow
def test_the_page_says_how(offline, tmp_path, monkeypatch, capsys):
    text = PAGE.read_text().partition("\n## lm-eval\n")[2].partition("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    for name, language in (("colours.yaml", "yaml"), ("colours.jsonl", "json")):
        (content,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
        (tmp_path / "tasks" / name).write_text(content)
    command_line = shlex.split(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[-1])
    assert cli.main(command_line[1:]) == 0
    assert re.search(r"\|colours *\|.*\|acc *\|", capsys.readouterr().out)


@pytest.mark.slow
def test_smollm2(offline, tmp_path):
    folder = float_folder(EMBEDDED_MODEL)
    assert_same(ours(["--"], EMBEDDED_MODEL, tmp_path), theirs(folder, tmp_path))
