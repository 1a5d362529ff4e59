"""OpenAI's Responses API with OpenAI's own client, next to streams of an engine here."""

from __future__ import annotations

import asyncio
import json

import pytest

from paged_stream import SamplingParams

openai = pytest.importorskip("openai")

GREEDY = {"temperature": 0.0, "max_output_tokens": 8, "extra_body": {"ignore_eos": True}}
PARAMS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
PIN = [{"role": "system", "content": "be brief"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yz"]}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def ai(client):
    with openai.OpenAI(base_url=f"{client.base}/v1", api_key="none", max_retries=0) as ai:
        yield ai


@pytest.fixture(scope="module")
def model(ai):
    return ai.models.list().data[0].id


@pytest.fixture
def create(ai, model):
    def create(**arguments):
        return ai.responses.create(model=model, **GREEDY | arguments)

    return create


def chat(stream, message):
    return "".join(delta.delta_text for delta in stream.chat(message, PARAMS))


def test_a_conversation_by_the_response_before(create, llm):
    """It goes on for many windows, and what was said is not computed again."""
    before = None
    with llm.open_stream(pin=PIN) as stream:
        for question in ("who?", "why?", "when?", "where?", "how?"):
            start = stream.position
            answer = create(
                input=question, instructions="be brief", previous_response_id=before and before.id
            )
            assert answer.output_text == chat(stream, question)
            assert answer.usage.output_tokens == 8
            assert answer.usage.total_tokens == stream.position
            if before is not None:
                assert answer.usage.input_tokens_details.cached_tokens == start
                assert answer.previous_response_id == before.id
            before = answer
        assert stream.stats().num_evicted_tokens > 0


def test_what_a_response_says_of_itself(create, ai, model):
    answer = create(input="who?", metadata={"a": "b"}, user="someone", truncation="auto")
    assert answer.id.startswith("resp_") and answer.object == "response" and answer.model == model
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.metadata == {"a": "b"} and answer.error is None and answer.store
    [message] = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "incomplete")
    assert ai.responses.retrieve(answer.id) == answer
    [said] = ai.responses.input_items.list(answer.id)
    assert (said.role, said.content) == ("user", "who?")
    whole = create(input="who?", max_output_tokens=None, temperature=1.0, extra_body={})
    assert whole.status == "completed" and whole.incomplete_details is None
    assert whole.completed_at >= whole.created_at


def test_streamed(create, ai, model):
    *events, last = create(input="who?", stream=True)
    assert [event.sequence_number for event in [*events, last]] == list(range(len(events) + 1))
    kinds = [event.type.removeprefix("response.") for event in events]
    beginning = ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[:4] == beginning
    assert kinds[-3:] == ["output_text.done", "content_part.done", "output_item.done"]
    assert set(kinds[4:-3]) == {"output_text.delta"}
    assert last.type == "response.incomplete" and events[0].response.status == "in_progress"
    text = "".join(event.delta for event in events[4:-3])
    assert text == events[-3].text == last.response.output_text == create(input="who?").output_text
    assert ai.responses.retrieve(last.response.id) == last.response
    with ai.responses.stream(model=model, input="who?") as stream:
        final = stream.get_final_response()
    assert final.status == "completed"
    assert ai.responses.retrieve(final.id).output_text == final.output_text


def test_in_coroutines(client, model, create):
    expected = create(input="who?").output_text

    async def run():
        base = f"{client.base}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as ai:
            asked = [ai.responses.create(model=model, input="who?", **GREEDY) for _ in range(6)]
            return [answer.output_text for answer in await asyncio.gather(*asked)]

    assert asyncio.run(run()) == [expected] * 6


def test_an_older_response_is_gone_on_from(create, llm):
    first = create(input="who?")
    second = create(input="why?", previous_response_id=first.id)
    other = create(input="when?", previous_response_id=first.id)
    third = create(input="how?", previous_response_id=second.id)
    with llm.open_stream() as stream:
        assert first.output_text == chat(stream, "who?")
        with stream.fork() as fork:
            assert other.output_text == chat(fork, "when?")
        assert second.output_text == chat(stream, "why?")
        assert third.output_text == chat(stream, "how?")


def test_what_is_not_kept_is_not_there(create, ai, client):
    num_streams = client.get("/health").json()["streams"]
    answer = create(input="who?", store=False)
    assert client.get("/health").json()["streams"] == num_streams
    for name in (answer.id, "resp_nothing", "nothing"):
        with pytest.raises(openai.NotFoundError):
            create(input="why?", previous_response_id=name)
        with pytest.raises(openai.NotFoundError):
            ai.responses.retrieve(name)
    kept = create(input="who?")
    assert client.get("/health").json()["streams"] == num_streams + 1
    assert create(input="why?", previous_response_id=kept.id, store=False).output_text
    ai.responses.delete(kept.id)
    assert client.get("/health").json()["streams"] == num_streams
    with pytest.raises(openai.NotFoundError):
        create(input="why?", previous_response_id=kept.id)


def test_items_are_messages(create, llm):
    """What a client sends that keeps the conversation itself."""
    asked = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    said = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "who?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "he", "annotations": []}],
        },
        asked,
        {"type": "function_call_output", "call_id": "c", "output": "5"},
    ]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "who?"},
        {"role": "assistant", "content": "he", "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "c"},
    ]
    template = TEMPLATE.replace("m.content", "m.content ~ (m.tool_calls or '')")
    more = GREEDY["extra_body"] | {"chat_template": template}
    with llm.open_stream(pin=PIN, chat_template=template) as stream:
        expected = chat(stream, messages)
    assert create(input=said, extra_body=more).output_text == expected


def test_instructions_are_seen_for_ever_and_others_are_said(create, client, llm):
    first = create(input="who?", instructions="be brief")
    text = "<system>be brief</s><user>"
    visible = client.get(f"/v1/streams/{first.id}/visible").json()
    assert visible["num_sink_tokens"] == len("<system>be brief") + 1 + len("<user>")
    assert "".join(run["text"] for run in visible["runs"]).startswith(text)
    same = create(input="why?", previous_response_id=first.id)  # as long as nothing else is said
    again = create(input="why?", previous_response_id=first.id, instructions="be brief")
    assert same.output_text == again.output_text
    other = create(input="why?", previous_response_id=first.id, instructions="be long")
    with llm.open_stream(pin=PIN) as stream:
        assert first.output_text == chat(stream, "who?")
        said = [{"role": "system", "content": "be long"}, {"role": "user", "content": "why?"}]
        assert other.output_text == chat(stream, said)


def test_what_a_template_cannot_pin_is_said_as_usual(create, llm):
    """Here, what the system says comes behind what the user says."""
    template = (
        "{% for m in messages[1:] %}<{{ m.role }}>{{ m.content }} ({{ messages[0].content }})"
    )
    template += "{% endfor %}<assistant>"
    messages = [*PIN, {"role": "user", "content": "who?"}]
    [expected] = llm.chat(messages, PARAMS, use_tqdm=False, chat_template=template)
    more = GREEDY["extra_body"] | {"chat_template": template}
    answer = create(input="who?", instructions="be brief", extra_body=more)
    assert answer.output_text == expected.outputs[0].text


def test_conversations(create, ai, llm):
    conversation = ai.conversations.create(metadata={"a": "b"}, items=[PIN[0]])
    assert ai.conversations.retrieve(conversation.id) == conversation
    texts = []
    with llm.open_stream(pin=PIN) as stream:
        for question in ("who?", "why?", "when?"):
            answer = create(input=question, conversation=conversation.id)
            assert answer.conversation.id == conversation.id
            texts += [question, chat(stream, question)]
            assert answer.output_text == texts[-1]
    items = list(ai.conversations.items.list(conversation.id, order="asc", limit=2))
    assert [item.role for item in items] == ["system", *["user", "assistant"] * 3]
    assert [text(item) for item in items] == ["be brief", *texts]
    assert ai.conversations.items.retrieve(items[2].id, conversation_id=conversation.id) == items[2]
    assert ai.conversations.update(conversation.id, metadata={"c": "d"}).metadata == {"c": "d"}
    ai.conversations.delete(conversation.id)
    for use in (
        lambda: create(input="how?", conversation=conversation.id),
        lambda: ai.conversations.retrieve(conversation.id),
    ):
        with pytest.raises(openai.NotFoundError):
            use()


def test_in_the_background(create, ai, llm):
    """It goes on though nobody reads, and can be gone on from."""
    answer = create(input="who?", background=True)
    assert answer.background and answer.status in ("queued", "in_progress")
    while answer.status in ("queued", "in_progress"):
        answer = ai.responses.retrieve(answer.id)
    second = create(input="why?", previous_response_id=answer.id)
    with llm.open_stream() as stream:
        assert (answer.status, answer.output_text) == ("incomplete", chat(stream, "who?"))
        assert second.output_text == chat(stream, "why?")
    ai.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        ai.responses.retrieve(answer.id)


def test_a_reader_in_the_background_comes_back(create, ai):
    with create(input="who?", background=True, stream=True) as events:
        seen = [next(events) for _ in range(4)]
    name, number = seen[0].response.id, seen[-1].sequence_number
    assert [event.type for event in seen[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    rest = list(ai.responses.retrieve(name, stream=True, starting_after=number))
    assert [event.sequence_number for event in seen + rest] == list(range(len(seen + rest)))
    deltas = [e.delta for e in seen + rest if e.type == "response.output_text.delta"]
    assert rest[-1].type == "response.incomplete"
    assert "".join(deltas) == rest[-1].response.output_text
    assert list(ai.responses.retrieve(name, stream=True)) == seen + rest


@pytest.mark.parametrize("end", ["cancel", "delete"])
def test_the_background_is_ended(create, ai, client, end):
    num_streams = client.get("/health").json()["streams"]
    answer = create(input="who?", background=True, max_output_tokens=10**9)
    if end == "cancel":
        assert ai.responses.cancel(answer.id).status == "cancelled"
        assert ai.responses.retrieve(answer.id).status == "cancelled"
    else:
        ai.responses.delete(answer.id)
        with pytest.raises(openai.NotFoundError):
            ai.responses.retrieve(answer.id)
    assert client.get("/health").json()["streams"] == num_streams
    with pytest.raises(openai.NotFoundError):
        create(input="why?", previous_response_id=answer.id)
    with pytest.raises(openai.NotFoundError):
        ai.responses.cancel("resp_nothing")


def test_what_was_said_is_taken_back_before_it_is_answered(create, ai, llm):
    conversation = ai.conversations.create()
    more = [{"type": "message", "role": "user", "content": word} for word in ("no, ", "yes, ")]
    first, _ = ai.conversations.items.create(conversation.id, items=more).data
    ai.conversations.items.delete(first.id, conversation_id=conversation.id)
    answer = create(input="why?", conversation=conversation.id)
    with llm.open_stream() as stream:
        said = [{"role": "user", "content": "yes, "}, {"role": "user", "content": "why?"}]
        assert answer.output_text == chat(stream, said)
    items = list(ai.conversations.items.list(conversation.id, order="asc"))
    assert [text(item) for item in items] == ["yes, ", "why?", answer.output_text]
    with pytest.raises(openai.BadRequestError, match="has seen it"):
        ai.conversations.items.delete(items[0].id, conversation_id=conversation.id)
    with pytest.raises(openai.NotFoundError):
        ai.conversations.items.delete(first.id, conversation_id=conversation.id)


def text(item):
    return item.content if isinstance(item.content, str) else item.content[0].text


def test_what_is_said_between_answers(create, ai, llm):
    conversation = ai.conversations.create()
    first = create(input="who?", conversation=conversation.id)
    more = [{"type": "message", "role": "user", "content": "no, "}]
    ai.conversations.items.create(conversation.id, items=more)
    second = create(input="why?", conversation={"id": conversation.id})
    third = create(input="when?", conversation=conversation.id)
    with llm.open_stream() as stream:
        assert first.output_text == chat(stream, "who?")
        said = [{"role": "user", "content": "no, "}, {"role": "user", "content": "why?"}]
        assert second.output_text == chat(stream, said)
        assert third.output_text == chat(stream, "when?")
    ai.conversations.delete(conversation.id)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "name": "f"}], ids=["any", "named"]
)
def test_tools(create, ai, model, choice):
    pytest.importorskip("llguidance")
    request = {"input": "who?", "tools": TOOLS, "tool_choice": choice, "max_output_tokens": None}
    request |= {"parallel_tool_calls": False, "extra_body": {"seed": 1}, "temperature": 1.0}
    answer = create(**request)
    [call] = answer.output
    assert (call.type, call.name, call.status) == ("function_call", "f", "completed")
    assert json.loads(call.arguments)["a"] in ("x", "yz")
    *_, arguments, item, last = create(stream=True, **request)
    assert arguments.type == "response.function_call_arguments.done"
    assert item.item.arguments == arguments.arguments == call.arguments
    assert last.response.output[0].call_id == item.item.call_id
    with ai.responses.stream(model=model, **request) as stream:
        [streamed] = stream.get_final_response().output
    assert (streamed.name, streamed.arguments) == ("f", call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "5"}
    template = {"chat_template": TEMPLATE}
    said = create(
        input=[result], previous_response_id=answer.id, extra_body=GREEDY["extra_body"] | template
    )
    assert said.usage.output_tokens == 8


def test_answers_by_a_schema(ai, model):
    pytest.importorskip("llguidance")
    pydantic = pytest.importorskip("pydantic")

    class Reply(pydantic.BaseModel):
        is_good: bool

    answer = ai.responses.parse(
        model=model, input="good?", text_format=Reply, extra_body={"seed": 1}
    )
    assert answer.output_parsed.is_good in (True, False)
    with ai.responses.stream(model=model, input="good?", text_format=Reply) as stream:
        assert stream.get_final_response().output_parsed.is_good in (True, False)


def test_log_probabilities(create, llm):
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=2)
    messages = [{"role": "user", "content": "who?"}]
    expected = llm.chat(messages, params, use_tqdm=False)[0].outputs[0].logprobs
    answer = create(input="who?", top_logprobs=2, include=["message.output_text.logprobs"])
    told = answer.output[0].content[0].logprobs
    assert [each.logprob for each in told] == pytest.approx([each.logprob for each in expected])
    assert all(len(each.top_logprobs) >= 2 for each in told)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"input": [{"type": "web_search_call"}]}, "items are message"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "must be text"),
        ({"input": [{"role": "user"}]}, "content of a message"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "arguments of a function_call"),
        ({"input": []}, "messages must be"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "a", "background": True, "store": False}, "background needs store"),
        ({"input": "a", "conversation": "c", "previous_response_id": "r"}, "exclude each other"),
        ({"input": "a", "text": {"format": {"type": "json_schema"}}}, "must have a schema"),
        ({"input": "a", "top_logprobs": 21}, "top_logprobs must be"),
        ({"input": "a", "temperature": -1}, "temperature must be"),
        ({"input": "a", "extra_body": {"nonsense": 1}}, "nonsense"),
        ({"input": "a", "extra_body": {"n": 2}}, "n must be 1"),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_is_wrong_is_said(create, client, request_, message, is_streamed):
    num_streams = client.get("/health").json()["streams"]
    with pytest.raises(openai.BadRequestError, match=message):
        create(stream=is_streamed, **request_)
    assert client.get("/health").json()["streams"] == num_streams


def test_a_client_that_leaves_leaves_nothing(create, client):
    num_streams = client.get("/health").json()["streams"]
    endless = {"max_output_tokens": 10**9, "stream": True}
    with create(input="who?", **endless) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                break
    while client.get("/health").json()["streams"] > num_streams:
        pass


def test_what_json_can_say_comes_back_as_it_came(client):
    """Half a surrogate pair, and a number of more than 64 bits."""
    metadata = {"a": "\ud800"}
    answer = client.post("/v1/conversations", json={"metadata": metadata}).json()
    assert answer["metadata"] == metadata
    tools = [{"type": "function", "name": "f", "parameters": {"const": 10**30}}]
    said = {"input": "who?", "max_output_tokens": 1, "tools": tools, "tool_choice": "none"}
    assert client.post("/v1/responses", json=said).json()["tools"] == tools
