"""OpenAI's own client, as anybody installs it, against a service."""

from __future__ import annotations

import asyncio
import json

import pytest

from paged_stream import SamplingParams

openai = pytest.importorskip("openai")

WHO = [{"role": "user", "content": "who?"}]
# What is not OpenAI's goes beside it.
GREEDY = {"temperature": 0.0, "extra_body": {"ignore_eos": True}}
FUNCTION = {
    "name": "f",
    "parameters": {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yz"]}},
        "required": ["a"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": FUNCTION}]


@pytest.fixture(scope="module")
def ai(client):
    with openai.OpenAI(base_url=f"{client.base}/v1", api_key="none", max_retries=0) as ai:
        yield ai


@pytest.fixture(scope="module")
def model(ai):
    [model] = ai.models.list()
    assert ai.models.retrieve(model.id) == model
    return model.id


@pytest.fixture(scope="module")
def answer(llm):
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=8)
    return llm.chat(WHO, params, use_tqdm=False)[0].outputs[0].text


def test_chat(ai, model, answer):
    said = ai.chat.completions.create(model=model, messages=WHO, max_completion_tokens=8, **GREEDY)
    assert said.choices[0].message.content == answer
    assert said.choices[0].finish_reason == "length" and said.usage.completion_tokens == 8


def test_chat_in_parts(ai, model, answer):
    options = {"include_usage": True}
    *parts, last = ai.chat.completions.create(
        model=model, messages=WHO, max_tokens=8, stream=True, stream_options=options, **GREEDY
    )
    assert "".join(part.choices[0].delta.content for part in parts) == answer
    assert last.choices == [] and last.usage.completion_tokens == 8


def test_chat_in_coroutines(client, model, answer):
    async def ask(ai, is_streamed):
        request = {"model": model, "messages": WHO, "max_tokens": 8, **GREEDY}
        if not is_streamed:
            said = await ai.chat.completions.create(**request)
            return said.choices[0].message.content
        parts = await ai.chat.completions.create(stream=True, **request)
        return "".join([part.choices[0].delta.content async for part in parts])

    async def run():
        base = f"{client.base}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as ai:
            return await asyncio.gather(*(ask(ai, n % 2 == 0) for n in range(6)))

    assert asyncio.run(run()) == [answer] * 6


def test_the_helper_for_streams(ai, model):
    pytest.importorskip("llguidance")
    only = {"structured_outputs": {"choice": ["he was"]}}
    with ai.chat.completions.stream(model=model, messages=WHO, extra_body=only) as stream:
        assert stream.get_final_completion().choices[0].message.content == "he was"


def test_completions(ai, model, llm):
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=4, logprobs=1)
    expected = [out.outputs[0] for out in llm.generate(["a", "b"], params, use_tqdm=False)]
    request = {"model": model, "prompt": ["a", "b"], "max_tokens": 4, "logprobs": 1} | GREEDY
    choices = ai.completions.create(**request).choices
    assert [choice.text for choice in choices] == [output.text for output in expected]
    for choice, output in zip(choices, expected, strict=True):
        told = choice.logprobs.token_logprobs
        assert told == pytest.approx([entry.logprob for entry in output.logprobs])
    texts = ["", ""]
    for part in ai.completions.create(stream=True, **request):
        texts[part.choices[0].index] += part.choices[0].text
    assert texts == [output.text for output in expected]


def test_embeddings(ai, model, llm):
    """The client asks for base64 unless it is told otherwise."""
    expected = [output.outputs.embedding for output in llm.embed(["a", "bc"], use_tqdm=False)]
    for request in ({}, {"encoding_format": "float"}):
        answer = ai.embeddings.create(model=model, input=["a", "bc"], **request)
        for each, vector in zip(answer.data, expected, strict=True):
            assert each.embedding == pytest.approx(vector, abs=1e-5)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == 3


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "f"}}], ids=["any", "named"]
)
def test_tools(ai, model, choice):
    pytest.importorskip("llguidance")
    request = {"model": model, "messages": WHO, "tools": TOOLS, "tool_choice": choice}
    request |= {"parallel_tool_calls": False, "seed": 1}
    message = ai.chat.completions.create(**request).choices[0].message
    [call] = message.tool_calls
    assert message.content is None and call.function.name == "f"
    assert json.loads(call.function.arguments)["a"] in ("x", "yz")
    with ai.chat.completions.stream(**request) as stream:
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.name == "f"
    assert json.loads(streamed.function.arguments)["a"] in ("x", "yz")
    result = {"role": "tool", "tool_call_id": call.id, "content": "5"}
    template = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
    said = ai.chat.completions.create(
        model=model,
        messages=[*WHO, message, result],
        tools=TOOLS,
        max_tokens=4,
        extra_body={"chat_template": template},
    )
    assert said.choices[0].finish_reason in ("length", "stop")


def test_answers_by_a_schema(ai, model):
    pytest.importorskip("llguidance")
    pydantic = pytest.importorskip("pydantic")

    class Reply(pydantic.BaseModel):
        is_good: bool

    said = ai.chat.completions.parse(model=model, messages=WHO, response_format=Reply, seed=1)
    assert said.choices[0].message.parsed.is_good in (True, False)


def test_errors_are_the_clients_own(ai, model):
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        ai.chat.completions.create(model="other", messages=WHO)
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("other")
    with pytest.raises(openai.BadRequestError, match="temperature must be") as caught:
        ai.chat.completions.create(model=model, messages=WHO, temperature=-1)
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="nonsense") as caught:
        ai.chat.completions.create(model=model, messages=WHO, extra_body={"nonsense": 1})
    assert caught.value.param == "nonsense"
    with pytest.raises(openai.NotFoundError):
        ai.images.generate(model=model, prompt="a")
