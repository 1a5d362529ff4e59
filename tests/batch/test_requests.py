"""Rows that say what they want: requests of OpenAI's batch file, and sampling parameters."""

from __future__ import annotations

import base64
import json

import numpy as np
import pyarrow as pa
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion
from pyarrow import parquet

from paged_stream import LLM, SamplingParams
from paged_stream.batch.plan import make_plan
from paged_stream.batch.row_runner import row_seed
from paged_stream.batch.run import describe_batch
from paged_stream.commands.batch import read_config
from tests.batch.corpora import ENGINE, config, errors, files, outputs, run_here, texts, write_lines
from tests.commands.test_settings import parse

CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"far": {"type": "boolean"}},
            "required": ["far"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(str(folder), **ENGINE, enable_prefix_caching=False)


def request(number, body, url=CHAT, **fields):
    return {"custom_id": f"r{number}", "method": "POST", "url": url, "body": body} | fields


def chat(text, **fields):
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], **fields}


def run_requests(folder, tmp_path, rows, name="out", **settings):
    """Outputs and errors by custom id."""
    source = write_lines(tmp_path / "in.jsonl", rows)
    run_here(config(folder, tmp_path / name, source, task="openai", **settings))
    found = (outputs(tmp_path / name), errors(tmp_path / name))
    return [{row["custom_id"]: row for row in rows} for rows in found]


def test_answers_are_those_of_the_engine_to_each_request(folder, tmp_path, llm):
    prompts = texts(12, 30)
    rows = [request(i, chat(text)) for i, text in enumerate(prompts[:6])]
    rows += [
        request(6, {"prompt": prompts[6]}, TEXT),
        request(7, {"prompt": prompts[7], "seed": 5, "max_tokens": 7, "temperature": 0.5}, TEXT),
        request(8, chat(prompts[8], seed=5, max_completion_tokens=7, temperature=0.5)),
    ]
    answers, bad = run_requests(folder, tmp_path, rows, shard_bytes=300)
    assert not bad and list(answers) == [f"r{i}" for i in range(9)]
    assert len({row["shard"] for row in answers.values()}) > 2
    for i, row in enumerate(answers.values()):
        body = row["response"]["body"]
        is_chat = rows[i]["url"] == CHAT
        (ChatCompletion if is_chat else Completion).model_validate(body, strict=True)
        ids = llm.intake.encode_chat(rows[i]["body"]["messages"]) if is_chat else prompts[i]
        seed = row_seed(3, row["shard"], row["row"])
        params = {"max_tokens": 12, "temperature": 1.0, "ignore_eos": True, "seed": seed}
        if i >= 7:
            params |= {"max_tokens": 7, "temperature": 0.5, "seed": 5}
        [expected] = llm.generate([ids], SamplingParams(**params), use_tqdm=False)
        [choice] = body["choices"]
        text = choice["message"]["content"] if is_chat else choice["text"]
        assert (text, choice["finish_reason"]) == (expected.outputs[0].text, "length")
        assert row["response"]["status_code"] == 200 and row["error"] is None
        assert row["prompt_tokens"] == len(expected.prompt_token_ids)
        assert row["output_tokens"] == params["max_tokens"] == body["usage"]["completion_tokens"]


def test_a_request_has_what_only_requests_have(folder, tmp_path):
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}
    rows = [
        request(0, chat("a", n=3, logprobs=True, top_logprobs=2)),
        request(1, chat("b", response_format=schema, max_tokens=20)),
        request(2, chat("c", tools=[TOOL], tool_choice="required", max_tokens=200)),
        request(3, {"prompt": ["a", "b"], "n": 2, "max_tokens": 3}, TEXT),
    ]
    (several, shaped, called, prompts), bad = (
        list(found.values()) for found in run_requests(folder, tmp_path, rows)
    )
    assert not bad
    choices = several["response"]["body"]["choices"]
    assert len({choice["message"]["content"] for choice in choices}) == 3
    assert len(choices[2]["logprobs"]["content"]) == 12
    content = shaped["response"]["body"]["choices"][0]["message"]["content"]
    assert isinstance(json.loads(content), bool)
    [choice] = called["response"]["body"]["choices"]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]
    assert isinstance(json.loads(call["function"]["arguments"])["far"], bool)
    assert call["id"].startswith("call_") and len(call["id"]) == 29
    assert len(prompts["response"]["body"]["choices"]) == 4 and prompts["output_tokens"] == 12


def test_requests_for_vectors(folder, tmp_path, llm):
    prompts = texts(4, 30)
    rows = [
        request(0, {"input": prompts[0]}, VECTORS),
        request(1, {"input": prompts[1:], "encoding_format": "base64"}, VECTORS),
        request(2, {"input": "a", "max_tokens": 3}, VECTORS),
    ]
    answers, bad = run_requests(folder, tmp_path, rows)
    assert list(answers) == ["r0", "r1"] and "max_tokens" in bad["r2"]["reason"]
    one, more = (row["response"]["body"] for row in answers.values())
    vectors = [each.outputs.embedding for each in llm.embed(prompts, use_tqdm=False)]
    assert one["data"][0]["embedding"] == pytest.approx(vectors[0], abs=1e-6)
    for each, vector in zip(more["data"], vectors[1:], strict=True):
        found = np.frombuffer(base64.b64decode(each["embedding"]), np.float32)
        assert found == pytest.approx(vector, abs=1e-6)
    assert [row["output_tokens"] for row in answers.values()] == [0, 0]
    assert answers["r1"]["prompt_tokens"] == more["usage"]["prompt_tokens"] > 3


def test_the_same_requests_give_the_same_bytes(folder, tmp_path):
    rows = [request(i, chat(text)) for i, text in enumerate(texts(5))]
    rows.append(request(5, chat("c", tools=[TOOL], tool_choice="required", max_tokens=200)))
    rows.append(request(6, chat("c", temperature=-1)))
    for name in ("once", "twice"):
        answers, bad = run_requests(folder, tmp_path, rows, name)
        assert len(answers) == 6 and len(bad) == 1
    assert files(tmp_path / "once") == files(tmp_path / "twice")
    ids = {row["id"] for row in answers.values()}
    assert len(ids | {row["response"]["body"]["id"] for row in answers.values()}) == 12


def test_requests_that_fail_are_told_as_openai_does(folder, tmp_path):
    rows = [
        request(0, chat("a")),
        request(1, chat("a"), method="GET"),
        request(2, chat("a"), "/v1/moderations"),
        request(3, [1]),
        request(4, chat("a", stream=True)),
        request(5, chat("a", temperature=-1)),
        request(6, chat("a", nonsense=1)),
        request(7, {"prompt": ""}, TEXT),
        request(8, json.dumps(chat("a"))),
        request(9, "{"),
    ]
    answers, bad = run_requests(folder, tmp_path, rows)
    assert set(answers) == {"r0", "r8"} and set(bad) == {f"r{i}" for i in (*range(1, 8), 9)}
    for number, words in {
        1: "method must be 'POST', got 'GET'",
        2: "url must be one of /v1/chat/completions, /v1/completions, /v1/embeddings, got",
        3: "body must be an object, got [1]",
        4: "stream must be left out",
        9: "body is no JSON",
    }.items():
        row = bad[f"r{number}"]
        assert words in row["reason"] and row["response"] is None
        assert row["error"] == {"code": "invalid_request", "message": row["reason"]}
    for number, words in {5: "temperature must be", 6: "nonsense", 7: "prompt"}.items():
        row = bad[f"r{number}"]
        assert words in row["reason"] and row["error"] is None
        assert row["response"]["status_code"] == 400
        assert row["response"]["body"]["error"]["message"] == row["reason"]
        assert row["location"].startswith(f"{tmp_path}/in.jsonl:byte ")


def test_what_bodies_leave_out_is_as_the_run_says(folder, tmp_path):
    params = {"max_tokens": 4, "structured_outputs": {"choice": ["yes"]}, "temperature": 0.0}
    rows = [request(0, chat("a")), request(1, chat("a", structured_outputs={"choice": ["no"]}))]
    answers, _ = run_requests(folder, tmp_path, rows, params=params | {"ignore_eos": False})
    assert [
        row["response"]["body"]["choices"][0]["message"]["content"] for row in answers.values()
    ] == ["yes", "no"]


def test_answers_in_parquet_are_json(folder, tmp_path):
    source = tmp_path / "in.parquet"
    rows = [request(0, json.dumps(chat("a")), row=5), request(1, json.dumps(chat("b")), row=6)]
    parquet.write_table(pa.Table.from_pylist(rows), source)
    settings = {"task": "openai", "format": "parquet", "keep": ["row"]}
    run_here(config(folder, tmp_path / "out", source, **settings))
    got = outputs(tmp_path / "out")
    assert [(row["custom_id"], row["input_row"], row["error"]) for row in got] == [
        ("r0", 5, None),
        ("r1", 6, None),
    ]
    assert json.loads(got[0]["response"])["status_code"] == 200


def test_the_plan_shows_requests(folder, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [request(0, chat("hello")), request(1, 5)])
    plan = describe_batch(config(folder, tmp_path / "out", source, task="openai"))
    assert "answer requests, up to 12 tokens if they do not say" in plan
    assert "shard 0 row 0: /v1/chat/completions {'model': 'gpt-4o-mini'" in plan
    assert "row 1: bad: body must be an object" in plan and "jsonl: id, response, error" in plan


def test_an_input_without_requests_is_refused(folder, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"custom_id": "a", "prompt": "b"}])
    with pytest.raises(ValueError, match="must have the column 'method' for 'openai'; it has cus"):
        make_plan(config(folder, tmp_path / "out", source, task="openai"))
    with pytest.raises(ValueError, match="must have the column 'messages' for 'chat'; it has cus"):
        make_plan(config(folder, tmp_path / "out", source, task="chat"))
    with pytest.raises(ValueError, match="task='openai' takes no prompt_column"):
        config(folder, tmp_path / "out", source, task="openai", prompt_column="prompt")


@pytest.mark.parametrize(
    ("options", "temperature"),
    [("", 0.0), ("--task openai", 1.0), ("--task openai --temperature 0", 0.0)],
)
def test_requests_have_openais_temperature_unless_somebody_says_another(options, temperature):
    args = parse(f"batch --input in --output out {options}")
    assert read_config(args).sampling_params.temperature == temperature


# Sampling parameters in columns

PARAMS = [
    {"temperature": 0.0},
    {"max_tokens": 3},
    {"params": {"seed": 9, "top_k": 5}},
    {"params": json.dumps({"structured_outputs": {"choice": ["yes"]}})},
    {"params": None, "temperature": None},
    {"params": {"max_tokens": 4}, "max_tokens": 9, "temperature": 0.5},
    {},
]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_say_how_they_are_generated(folder, tmp_path, llm, suffix):
    rows = [{"prompt": text, **params} for text, params in zip(texts(7), PARAMS, strict=True)]
    source = tmp_path / f"in.{suffix}"
    if suffix == "jsonl":
        write_lines(source, rows)
    else:
        for row in rows:
            params = row.get("params")
            row["params"] = params if isinstance(params, str) or not params else json.dumps(params)
        names = ["prompt", "temperature", "max_tokens", "params"]
        whole = [{name: row.get(name) for name in names} for row in rows]
        parquet.write_table(pa.Table.from_pylist(whole), source)
    columns = ["temperature", "max_tokens", "params"]
    run_here(config(folder, tmp_path / "out", source, sampling_columns=columns))
    assert not errors(tmp_path / "out")
    for row, got, changed in zip(rows, outputs(tmp_path / "out"), PARAMS, strict=True):
        given = {"max_tokens": 12, "temperature": 1.0, "ignore_eos": True}
        given["seed"] = row_seed(3, got["shard"], got["row"])
        own = changed.get("params") or {}
        own = json.loads(own) if isinstance(own, str) else own
        flat = {name: changed.get(name) for name in ("temperature", "max_tokens")}
        given |= {name: value for name, value in (flat | own).items() if value is not None}
        [expected] = llm.generate([row["prompt"]], SamplingParams(**given), use_tqdm=False)
        assert got["generated_text"] == expected.outputs[0].text
        assert got["output_tokens"] == len(expected.outputs[0].token_ids)


def test_a_struct_is_an_object_of_parameters(folder, tmp_path):
    rows = [{"prompt": "a", "how": {"max_tokens": 2}}, {"prompt": "b", "how": {"top_k": 1}}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    run_here(
        config(folder, tmp_path / "out", tmp_path / "in.parquet", sampling_columns=["how"]),
    )
    assert [row["output_tokens"] for row in outputs(tmp_path / "out")] == [2, 12]


def test_wrong_parameters_are_bad_rows(folder, tmp_path):
    wrong = {
        "temperature must be": {"temperature": -1},
        "has no setting 'heat'": {"heat": 1},
        "column 'params' is no JSON": "{",
        "column 'params' must be an object": [1],
        "n=1": {"n": 2},
        "allowed_token_ids": {"allowed_token_ids": [9999]},
    }
    rows = [{"prompt": "a", "params": params} for params in [*wrong.values(), {"top_k": 1}]]
    source = write_lines(tmp_path / "in.jsonl", rows)
    run_here(config(folder, tmp_path / "out", source, sampling_columns=["params"]))
    assert [row["row"] for row in outputs(tmp_path / "out")] == [len(wrong)]
    for words, row in zip(wrong, errors(tmp_path / "out"), strict=True):
        assert words in row["reason"]


def test_columns_of_parameters_must_be_there_and_of_use(folder, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{"prompt": "a", "text": "a"}])
    with pytest.raises(ValueError, match="sampling_columns must name columns of .*, got 'heat'"):
        make_plan(config(folder, tmp_path / "out", source, sampling_columns=["heat"]))
    with pytest.raises(ValueError, match="sampling_columns must be left out of task='score'"):
        config(folder, tmp_path / "out", source, task="score", sampling_columns=["text"])
