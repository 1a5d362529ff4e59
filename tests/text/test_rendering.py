"""Conversations are written as transformers writes them, and what models say about them is kept."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from paged_stream.text.chat_options import ChatOptions, ChatSettings
from paged_stream.text.tokenizer import load_tokenizer
from tests.text.chat_templates import QWEN_3, TEMPLATES

THOUGHT = "<think>\nHm.\n</think>\n\nYes."
TALKS = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " why?\n"}],
    [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": THOUGHT},
        {"role": "user", "content": "Why?"},
    ],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}],
    [{"role": "user", "content": "{{ 'x' * 10**10 }}"}, {"role": "assistant", "content": "  "}],
    [{"role": "assistant", "content": "first"}],
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"x": {"é": [1, None]}}}}]
CALL = {"name": "add", "arguments": {"x": 1}}
ASKED = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "I add.", "tool_calls": [{"function": CALL}]},
    {"role": "tool", "content": "2"},
]
SETTINGS: list[ChatSettings] = [
    {},
    {"add_generation_prompt": False},
    {"add_generation_prompt": False, "continue_final_message": True},
    {"chat_template_kwargs": {"enable_thinking": False, "bos_token": "<other>"}},
    {"tools": TOOLS},
]
# What models' templates use beside loops and conditions.
CALLS = r"""
{%- if not messages -%}{{ raise_exception('none') }}{%- endif -%}
{%- macro show(call) -%}{{ call.name }}({{ call.arguments | tojson }}){%- endmacro -%}
{%- for m in messages if m.role != 'system' %}
    {%- if loop.previtem is defined and loop.previtem.role == m.role %}{% continue %}{% endif %}
{{ loop.index }}/{{ loop.length }} {{ m.role | title }} {{ m.get('content') | default('-', true) }}
    {% generation %}{{ (m.reasoning_content or '')[:20] }}{% endgeneration %}
    {%- for call in m.tool_calls or [] %}{{ show(call.function) }}{{ ' ' * 3 }}{% endfor %}
    {%- if '</think>' in (m.content or '') %}
{{ m.content.split('</think>')[-1].lstrip('\n').replace('.', '!') }}{% break %}{% endif %}
{% endfor %}
{%- set names = messages | map(attribute='role') | unique | list %}
{{ '%s %05.1f' % (names | join(', '), 2 ** 0.5) }} {{ '{:>6}|{}'.format(names[0], names[-1:]) }}
{{ tools | tojson(indent=2) }}{{ namespace(a=1).a + [1, 2] | sum }}{{ 'a' ~ 1 ~ none }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ dict(a=1).items() | list }}
"""


@pytest.fixture
def pair(tiny_llama, save):
    folder = save(tiny_llama())
    return load_tokenizer(folder, "mine"), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", [*TEMPLATES, "calls"])
def test_texts_equal_transformers(pair, name):
    tokenizer, oracle = pair
    template = CALLS if name == "calls" else TEMPLATES[name]
    num_equal = 0
    for messages in [*TALKS, ASKED]:
        for settings in SETTINGS:
            given = {"add_generation_prompt": True, "tools": None} | settings
            variables = given.pop("chat_template_kwargs", {})
            try:
                expected = oracle.apply_chat_template(
                    messages, chat_template=template, tokenize=False, **given, **variables
                )
            except Exception:
                with pytest.raises(ValueError, match="template|continue_final_message"):
                    tokenizer.render_chat_template(
                        messages, ChatOptions(chat_template=template, **settings)
                    )
                continue
            options = ChatOptions(chat_template=template, **settings)
            assert tokenizer.render_chat_template(messages, options) == expected
            num_equal += 1
    assert num_equal >= 8


def test_a_template_may_be_in_a_file_and_belong_to_the_engine(tiny_llama, save, tmp_path):
    folder, path = save(tiny_llama()), tmp_path / "a.jinja"
    path.write_text("{{ messages[0].content }}!", encoding="utf-8")
    for template in (path, str(path), path.read_text(encoding="utf-8")):
        tokenizer = load_tokenizer(folder, "mine", template)
        assert tokenizer.render_chat_template(TALKS[0]) == "hi!"
        options = ChatOptions(chat_template="{{ messages | length }}")
        assert tokenizer.render_chat_template(TALKS[0], options) == "1"
        options = ChatOptions(chat_template=template)
        assert load_tokenizer(folder, "mine").render_chat_template(TALKS[0], options) == "hi!"


def test_arguments_of_calls_may_be_texts_and_objects(pair):
    tokenizer, _ = pair
    as_text = {"function": {**CALL, "arguments": '{"x": 1}'}}
    broken = {"function": {**CALL, "arguments": '{"x": '}}
    options = ChatOptions(chat_template="{{ messages[-1].tool_calls[0].function.arguments }}")
    for call, expected in (
        ({"function": CALL}, "{'x': 1}"),
        (as_text, "{'x': 1}"),
        (broken, '{"x": '),
    ):
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        assert tokenizer.render_chat_template([message], options) == expected
    unset = ChatOptions(chat_template="{{ messages[-1].content is defined }}")
    assert tokenizer.render_chat_template([message], unset) == "False"


def test_thinking_may_be_asked_for(pair):
    tokenizer, _ = pair
    ends = [
        tokenizer.render_chat_template(
            TALKS[0], ChatOptions(chat_template=QWEN_3, chat_template_kwargs=variables)
        )[-25:]
        for variables in ({"enable_thinking": False}, None)
    ]
    assert ends[0].endswith("<think>\n\n</think>\n\n") and ends[1].endswith("assistant\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template": "/nowhere"}, "chat_template must be a template.*'/nowhere'"),
        ({"chat_template": 3}, "chat_template must be a text or a path, got 3"),
        ({"add_generation_prompt": 1}, "add_generation_prompt must be True or False, got 1"),
        ({"continue_final_message": True}, "set add_generation_prompt=False"),
        ({"chat_template_kwargs": ["a"]}, "chat_template_kwargs must be a dict"),
        ({"chat_template_kwargs": {"tools": []}}, "'tools' is an argument of chat itself"),
        ({"chat_template_kwargs": {"a": object()}}, "chat_template_kwargs: .*not JSON"),
        ({"tools": {"type": "function"}}, "tools must be a list of JSON schemas"),
        ({"tools": [print]}, "tools must be a list of JSON schemas"),
    ],
)
def test_wrong_options_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ChatOptions(**settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image_url", "image_url": {}}], "a part of type 'image_url'"),
        ([{"type": "text", "text": "a"}, {"type": "input_audio"}], "a part of type 'input_audio'"),
        ([{"type": "text"}], "{'type': 'text'}"),
        ([3], "got 3"),
        (3, "got 3"),
    ],
)
def test_other_parts_than_text_are_named(pair, content, message):
    tokenizer, _ = pair
    with pytest.raises(ValueError, match=message):
        tokenizer.render_chat_template([{"role": "user", "content": content}])


def test_a_template_beyond_the_limits_is_named(pair):
    tokenizer, _ = pair
    for template in ("{{ 'x' * 10**10 }}", "{{ 'x' | center(10**10) }}"):
        options = ChatOptions(chat_template=template)
        with pytest.raises(ValueError, match="messages: the chat template makes a value of more"):
            tokenizer.render_chat_template(TALKS[0], options)
