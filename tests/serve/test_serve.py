"""``paged-stream serve`` over HTTP, with one engine and with a pool, next to an engine here."""

from __future__ import annotations

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from paged_stream import SamplingParams
from paged_stream.cli import main
from paged_stream.engine.outputs import EngineStats, TurnStats
from tests.serve.services import SAMPLING, arguments, events, free_port, serve_engine

TOOLS = [{"function": {"strict": True, "name": "f"}, "type": "function"}]


def in_order(metrics):
    stages = ("arrival_time", "first_scheduled_time", "first_token_time", "finished_time")
    times = [metrics[name] for name in stages]
    assert times == sorted(times)
    assert metrics["time_in_queue"] == times[1] - times[0]


def test_completions(client, llm):
    params = SamplingParams(**SAMPLING)
    expected = llm.generate("once upon", params, use_tqdm=False)[0].outputs[0].text
    body = {"prompt": "once upon"} | SAMPLING
    answer = client.post("/v1/completions", json=body).json()
    assert answer["object"] == "text_completion"
    ending = {"finish_reason": "length", "stop_reason": None}
    choice = {"index": 0, "text": expected, "logprobs": None, **ending}
    assert answer["choices"] == [choice]
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
    in_order(answer["metrics"])
    parts = [event["choices"][0] for event in events(client, "/v1/completions", body)]
    assert "".join(part["text"] for part in parts) == expected
    assert parts[-1]["finish_reason"] == "length"


def test_every_sampling_field_arrives(client, llm):
    first = llm.generate("once upon", SamplingParams(**SAMPLING), use_tqdm=False)[0].outputs[0]
    more = {"stop_token_ids": [first.token_ids[2]], "min_tokens": 5, "repetition_penalty": 1.5}
    expected = llm.generate("once upon", SamplingParams(**SAMPLING, **more), use_tqdm=False)
    answer = client.post("/v1/completions", json={"prompt": "once upon"} | SAMPLING | more).json()
    assert answer["choices"][0]["text"] == expected[0].outputs[0].text != first.text
    stop = {"stop_token_ids": more["stop_token_ids"]}
    answer = client.post("/v1/completions", json={"prompt": "once upon"} | SAMPLING | stop).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["stop_reason"] == first.token_ids[2]
    assert answer["usage"]["completion_tokens"] <= 3


def test_models(client, folder):
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == str(folder) and model["object"] == "model"


def samples(client):
    """Values of /metrics by name and replica, and those of all replicas together by name."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    values, types = {}, {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            types[sample.name] = family.type
            number = sample.labels.get("replica", sample.labels.get("engine"))
            key = (sample.name.removeprefix("paged_stream_"), number)
            values[key] = sample.value
            if sample.labels:
                values[key[0]] = values.get(key[0], 0) + sample.value
    assert all(name.startswith(("paged_stream_", "vllm:")) for name in types)
    assert {n for n in types if n.endswith("_total")} == {
        n for n, kind in types.items() if kind == "counter"
    }
    return values


def test_metrics(client):
    before = samples(client)
    stream_id = client.post("/v1/streams", json={}).json()["id"]
    body = {"prompt": "a beginning"} | SAMPLING | {"max_tokens": 40}
    client.post(f"/v1/streams/{stream_id}/generate", json=body)
    after = samples(client)
    assert after["open_streams", None] == before["open_streams", None] + 1
    assert after["generated_tokens_total"] == before["generated_tokens_total"] + 40
    assert after["evicted_tokens_total"] > before["evicted_tokens_total"]
    assert after["blocks", "0"] > after["used_blocks"] > 0
    assert after["steps_total"] > before["steps_total"]
    for name in ("finished_turns_total", "first_token_seconds_count", "turn_seconds_count"):
        assert after[name] == before.get(name, 0) + 1
    assert after["vllm:generation_tokens_total"] == after["generated_tokens_total"]
    client.delete(f"/v1/streams/{stream_id}")


@pytest.mark.parametrize("client", [pytest.param("pool", marks=pytest.mark.ray)], indirect=True)
def test_metrics_of_a_pool(client):
    values = samples(client)
    assert values["ready_replicas", None] == values["wanted_replicas", None] == 2
    assert values["open_streams", None] == values["streams"]
    assert values["blocks", "0"] == values["blocks", "1"] > 0


def test_metrics_have_all_that_an_engine_counts():
    from paged_stream.serve import metrics

    shown = {field for _, field, _ in metrics._ENGINE} | {"num_streams", "turns"}
    assert shown == {field.name for field in fields(EngineStats)}
    shown = {field for _, field, _ in metrics._TURNS} | {"finish_reasons"}
    assert shown == {field.name for field in fields(TurnStats)}


def test_chat_completions(client, llm):
    messages = [{"role": "user", "content": "who?"}]
    params = SamplingParams(**SAMPLING)
    expected = llm.chat(messages, params, use_tqdm=False)[0].outputs[0].text
    body = {"messages": messages} | SAMPLING
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected}
    parts = events(client, "/v1/chat/completions", body)
    assert "".join(part["choices"][0]["delta"]["content"] for part in parts) == expected
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    roles = [part["choices"][0]["delta"].get("role") for part in parts]
    assert roles == ["assistant"] + [None] * (len(parts) - 1)


def test_chats_without_a_limit_go_on_to_the_end(client):
    body = {"messages": [{"role": "user", "content": "who?"}]}
    opened = client.post("/v1/streams", json={}).json()
    path = f"/v1/streams/{opened['id']}/chat"
    for _ in range(20):
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert client.post(path, json=body).json()["finish_reason"] == "stop"
    completion = client.post("/v1/completions", json={"prompt": "a", "ignore_eos": True}).json()
    assert completion["usage"]["completion_tokens"] == 16
    client.delete(f"/v1/streams/{opened['id']}")


def test_what_clients_of_openai_send(client, llm):
    content = [{"type": "text", "text": "who"}, {"type": "text", "text": "?"}]
    body = {"messages": [{"role": "user", "content": content}]} | SAMPLING | {"max_tokens": None}
    body |= {"max_completion_tokens": 5, "user": "someone"}
    plain = [{"role": "user", "content": "who?"}]
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    expected = llm.chat(plain, params, use_tqdm=False)[0].outputs[0].text
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == expected
    assert answer["id"].startswith("chatcmpl-")
    *parts, last = events(
        client, "/v1/chat/completions", body | {"stream_options": {"include_usage": True}}
    )
    assert (last["choices"], last["usage"]) == ([], answer["usage"])
    assert last["usage"]["completion_tokens"] == 5 and parts[-1]["usage"] is None
    in_order(last["metrics"])


def test_streams(client, llm):
    opened = client.post("/v1/streams", json={}).json()
    path = f"/v1/streams/{opened['id']}"
    with llm.open_stream() as stream:
        stream.append("a beginning")
        expected = [
            "".join(d.delta_text for d in stream.generate(SamplingParams(**SAMPLING)))
            for _ in range(3)
        ]
        position = stream.position
    body = {"prompt": "a beginning"}
    assert client.post(f"{path}/append", json=body).json()["position"] == 11
    visible = client.get(f"{path}/visible").json()
    run = {"start": 0, "token_ids": llm.encode("a beginning"), "text": "a beginning"}
    assert visible["runs"] == [run | {"missing": None}]
    assert visible["num_sink_tokens"] == client.get(path).json()["num_sink_tokens"] == 4
    answer = client.post(f"{path}/generate", json=SAMPLING).json()
    assert (answer["text"], answer["position"]) == (expected[0], 23)
    in_order(answer["metrics"])
    fork = client.post(f"{path}/fork").json()
    *parts, ended = events(client, f"{path}/generate", SAMPLING)
    assert "".join(part["text"] for part in parts) == expected[1]
    assert (ended["type"], ended["position"]) == ("ended", position - 12)
    for turn in (1, 2):
        answer = client.post(f"/v1/streams/{fork['id']}/generate", json=SAMPLING).json()
        assert answer["text"] == expected[turn]
    assert answer["position"] == position
    assert client.get(path).json()["position"] == position - 12
    assert client.get("/health").json()["streams"] == 2
    for stream_id in (opened["id"], fork["id"]):
        assert client.delete(f"/v1/streams/{stream_id}").json()["deleted"]
    assert client.get("/health").json()["streams"] == 0


def test_chat_in_a_stream(client, llm):
    pin = [{"role": "system", "content": "short"}]
    stream_id = client.post("/v1/streams", json={"pin": pin}).json()["id"]
    with llm.open_stream(pin=pin) as stream:
        for question in ("who?", "why?"):
            deltas = stream.chat(question, SamplingParams(**SAMPLING))
            body = {"messages": [{"role": "user", "content": question}]} | SAMPLING
            answer = client.post(f"/v1/streams/{stream_id}/chat", json=body).json()
            assert answer["text"] == "".join(delta.delta_text for delta in deltas)
    client.delete(f"/v1/streams/{stream_id}")


@pytest.mark.parametrize("on_rewrite", ["keep", "cut", "error"])
def test_a_template_that_rewrites_answers(client, llm, on_rewrite):
    marks = (
        "{% for m in messages %}<{{ m.role }}>{% if not loop.last and m.role != 'user' %}!"
        "{% endif %}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    opening = {"chat_template": marks, "window_size": 200}
    stream_id = client.post("/v1/streams", json=opening).json()["id"]
    rewrites = []
    with llm.open_stream(**opening) as stream:
        for question in ("who?", "why?"):
            body = {"messages": [{"role": "user", "content": question}], "on_rewrite": on_rewrite}
            answer = client.post(f"/v1/streams/{stream_id}/chat", json=body | SAMPLING)
            if on_rewrite == "error" and rewrites:
                assert answer.status_code == 400
                assert "where the stream has" in answer.json()["error"]["message"]
                break
            deltas = stream.chat(question, SamplingParams(**SAMPLING), on_rewrite=on_rewrite)
            assert answer.json()["text"] == "".join(delta.delta_text for delta in deltas)
            rewrites.append(answer.json()["template_rewrote"])
    assert rewrites == ([False] if on_rewrite == "error" else [False, True])
    client.delete(f"/v1/streams/{stream_id}")


def test_chats_are_written_as_the_body_says(client, llm):
    messages = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "he"}]
    template = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{{ end }}{% endfor %}"
    for options in (
        {"chat_template": template, "chat_template_kwargs": {"end": "!"}, "tools": TOOLS},
        {"add_generation_prompt": False, "continue_final_message": True},
    ):
        [expected] = llm.chat(messages, SamplingParams(**SAMPLING), use_tqdm=False, **options)
        body = {"messages": messages} | SAMPLING | options
        answer = client.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == expected.outputs[0].text
        stream_id = client.post("/v1/streams", json={}).json()["id"]
        answer = client.post(f"/v1/streams/{stream_id}/chat", json=body).json()
        assert answer["text"] == expected.outputs[0].text
        client.delete(f"/v1/streams/{stream_id}")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/completions", {"prompt": "a", "temperature": -1}, 400, "temperature must be"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt must not be empty"),
        ("/v1/completions", {"prompt": [1000], "stream": True}, 400, "must be in"),
        ("/v1/completions", {"prompt": "a", "best_of": 2}, 400, "best_of"),
        ("/v1/chat/completions", {"messages": "who?"}, 400, "messages"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "chat_template": "/etc/hostname"},
            400,
            "chat_template",
        ),
        ("/v1/streams", {"window_size": 0}, 400, "window_size must be"),
        ("/v1/streams/nothing/append", {"prompt": "a"}, 404, "there is no stream 'nothing'"),
        ("/v1/streams/nothing/generate", {}, 404, "there is no stream 'nothing'"),
    ],
)
def test_what_is_wrong_is_said(client, path, body, status, message):
    response = client.post(path, json=body)
    assert (response.status_code, message in response.text) == (status, True), response.text
    assert response.json()["error"]["message"]


def test_a_stream_says_what_is_wrong(client):
    stream_id = client.post("/v1/streams", json={}).json()["id"]
    path = f"/v1/streams/{stream_id}"
    for body, message in [
        ({"stream": True}, "the stream is empty"),
        ({"prompt": "a", "n": 2}, "n must be 1 for a stream"),
        ({"prompt": "a", "messages": []}, "messages: Extra inputs are not permitted"),
    ]:
        response = client.post(f"{path}/generate", json=body)
        assert response.status_code == 400 and message in response.text
    assert client.get(path).json()["position"] == 0
    assert client.delete(path).status_code == 200
    assert client.delete(path).status_code == 404


@pytest.mark.parametrize(
    ("end", "options"), [(signal.SIGINT, {}), (signal.SIGTERM, {"drain_seconds": 0.01})]
)
def test_the_end_of_a_service_ends_endless_answers(folder, end, options):
    with serve_engine(folder, end, **options) as base:
        body = {"prompt": "a", "max_tokens": 10**9, "ignore_eos": True, "stream": True}
        response = requests.post(f"{base}/v1/completions", json=body, stream=True)
        lines = response.iter_lines()
        next(lines)
    *_, last = (line for line in lines if line)
    assert "the engine is closed" in last.decode()


def test_a_service_that_is_to_end_finishes_its_answers(folder):
    body = {"prompt": "a", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    with ThreadPoolExecutor() as threads:
        with serve_engine(folder, signal.SIGTERM, drain_seconds=1e6) as base:
            response = requests.post(f"{base}/v1/completions", json=body, stream=True)
            lines = response.iter_lines()
            next(lines)
            rest = threads.submit(lambda: [line for line in lines if line])
        *_, last, done = rest.result()
    assert done == b"data: [DONE]"
    assert json.loads(last.removeprefix(b"data: "))["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("client", [pytest.param("pool", marks=pytest.mark.ray)], indirect=True)
def test_one_service_per_cluster(client, folder, capsys):
    assert main(arguments({"model": folder, "port": free_port(), "num_replicas": 2})) == 2
    assert "Ray Serve runs in this cluster already" in capsys.readouterr().err
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("num_replicas", [1, pytest.param(2, marks=pytest.mark.ray)])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 0}, "--port must be >= 1, got 0"),
        ({"port": 65536}, "--port must be <= 65535, got 65536"),
        ({"host": "192.0.2.77"}, "cannot listen: "),
        ({"api_key_file": "nowhere"}, "api_key_file='nowhere' cannot be used"),
        ({"state_dir": "/proc/state"}, "state_dir='/proc/state' cannot be used"),
        ({"max_idle_seconds": -1}, "--max-idle-seconds must be in (0, inf), got -1.0"),
        ({"model": "nowhere"}, "model='nowhere' is no folder"),
        ({"window_size": 0}, "--window-size must be >= 1, got 0"),
        ({"dtype": "float8"}, "--dtype must be one of"),
    ],
)
def test_bad_options_start_nothing(refuses, folder, num_replicas, options, message):
    refuses({"model": folder, "num_replicas": num_replicas} | options, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_replicas": 0}, "--num-replicas must be >= 1, got 0"),
        ({"save_every_tokens": 0}, "--save-every-tokens must be >= 1, got 0"),
        ({"save_every_tokens": 8}, "--save-every-tokens is for a pool; set --num-replicas to 2"),
        ({"save_dir": "streams"}, "--save-dir is for a pool; set --num-replicas to 2"),
    ],
)
def test_bad_options_of_a_pool(refuses, folder, options, message):
    refuses({"model": folder} | options, message)


@pytest.fixture
def refuses(monkeypatch, capsys):
    """Checks that the command says what is wrong with options, and starts nothing."""

    def check(options, message):
        if options.get("num_replicas", 1) > 1:
            pytest.importorskip("ray")
            monkeypatch.setattr(
                "paged_stream.commands.serve.connect", lambda ray: pytest.fail("Ray")
            )
        assert main(arguments(options)) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err and err.count("\n") == 1

    return check


@pytest.mark.parametrize("num_replicas", [1, pytest.param(2, marks=pytest.mark.ray)])
def test_a_port_in_use_is_named(refuses, folder, num_replicas):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refuses(
            {"model": folder, "port": port, "num_replicas": num_replicas},
            f"Address already in use (while attempting to bind on address ('127.0.0.1', {port})",
        )
