"""LoRA adapters behind a service: by their names as models, in answers, responses and streams."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from paged_stream import LLM, LoRARequest, SamplingParams
from tests.lora_adapter import Adapter
from tests.serve.services import SAMPLING, SETTINGS, Client, serve_engine, serve_pool

PARAMS = SamplingParams(**SAMPLING)


@pytest.fixture(scope="module")
def path(folder, tmp_path_factory):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Adapter(model, rank=8).save(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module", params=["engine", pytest.param("pool", marks=pytest.mark.ray)])
def client(request, folder, path, tmp_path_factory):
    if request.param == "pool":
        request.getfixturevalue("ray")
    serve = serve_pool if request.param == "pool" else serve_engine
    state_dir = tmp_path_factory.mktemp("state")
    with serve(folder, lora_modules=f"tuned={path}", state_dir=state_dir) as base:
        yield Client(base)


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(str(folder), **SETTINGS)


@pytest.fixture(scope="module")
def tuned(path):
    return LoRARequest("tuned", 1, path)


def asked(client, path, **body):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_names_of_models(client, folder, llm, tuned):
    listed = client.get("/v1/models").json()["data"]
    assert [(model["id"], model["parent"]) for model in listed] == [
        (str(folder), None),
        ("tuned", str(folder)),
    ]
    assert client.get("/v1/models/tuned").json()["id"] == "tuned"
    found = {}
    for name, adapter in [("tuned", tuned), (str(folder), None)]:
        answer = asked(client, "/v1/completions", model=name, prompt="once", **SAMPLING)
        output = llm.generate("once", PARAMS, lora_request=adapter, use_tqdm=False)[0]
        assert answer["choices"][0]["text"] == output.outputs[0].text
        assert answer["model"] == name
        vectors = asked(client, "/v1/embeddings", model=name, input="once")
        expected = llm.embed("once", lora_request=adapter, use_tqdm=False)[0].outputs.embedding
        assert vectors["data"][0]["embedding"] == pytest.approx(expected)
        found[name] = answer["choices"][0]["text"]
    assert len(set(found.values())) == 2
    response = client.post("/v1/completions", json={"model": "other", "prompt": "once"})
    assert response.status_code == 404
    assert "there is no model 'other'; this is " in response.json()["error"]["message"]


def test_chat_and_responses(client, llm, tuned):
    said = [{"role": "user", "content": "who?"}]
    expected = llm.chat(said, PARAMS, lora_request=tuned, use_tqdm=False)[0].outputs[0].text
    answer = asked(client, "/v1/chat/completions", model="tuned", messages=said, **SAMPLING)
    assert answer["choices"][0]["message"]["content"] == expected
    sampling = {"temperature": 0.0, "max_output_tokens": 12, "ignore_eos": True}
    first = asked(client, "/v1/responses", model="tuned", input="who?", **sampling)
    assert first["output"][0]["content"][0]["text"] == expected
    assert first["model"] == "tuned"
    more = {"input": "and?", "previous_response_id": first["id"], **sampling}
    second = asked(client, "/v1/responses", model="tuned", **more)
    with llm.open_stream(lora_request=tuned) as stream:
        for text in ("who?", "and?"):
            answer = "".join(delta.delta_text for delta in stream.chat(text, PARAMS))
    assert second["output"][0]["content"][0]["text"] == answer
    other = client.post("/v1/responses", json=more)
    assert other.status_code == 400
    assert "model must be 'tuned', as in the response before" in other.json()["error"]["message"]


def test_streams_rest_and_come_back_with_theirs(client, llm, tuned):
    texts = {}
    for name, adapter in [("tuned", tuned), (None, None)]:
        place = asked(client, "/v1/streams", model=name)
        at = f"/v1/streams/{place['id']}"
        asked(client, f"{at}/append", prompt="once upon a time")
        asked(client, f"{at}/save", name="it")
        again = asked(client, "/v1/streams/saved/it/restore")
        with llm.open_stream(lora_request=adapter) as stream:
            stream.append("once upon a time")
            texts[name] = "".join(delta.delta_text for delta in stream.generate(PARAMS))
        for each in (place, again):
            answer = asked(client, f"/v1/streams/{each['id']}/generate", **SAMPLING)
            assert answer["text"] == texts[name], json.dumps(answer)
    assert len(set(texts.values())) == 2
