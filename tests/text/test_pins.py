"""A pin is what every conversation begins with that has these messages in front."""

from __future__ import annotations

import pytest

from paged_stream.text.chat import pinned_text
from paged_stream.text.chat_options import StreamChatOptions, WritingOptions
from paged_stream.text.conversation import Conversation
from paged_stream.text.held_text import Heard
from paged_stream.text.next_messages import next_messages
from paged_stream.text.tokenizer import Tokenizer
from tests.text.chat_templates import TEMPLATES
from tests.text.seam_kinds import byte_level, wrap

RULES = [{"role": "system", "content": "be brief"}]
EXAMPLE = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two."}]
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
PINNED = {
    "llama 2": "<s>[INST] <<SYS>>\nbe brief\n<</SYS>>\n\n",
    "mistral": "<s>[INST] be brief\n\n",
    "llama 3": f"<s>{HEADER.format('system')}be brief<|eot_id|>{HEADER.format('user')}",
    "chatml": "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n",
    "qwen 2": "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n",
    "smollm 2": "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n",
    "qwen 3": "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n",
    "phi 3": "<|system|>\nbe brief<|end|>\n<|user|>\n",
    "zephyr": "<|system|>\nbe brief</s>\n<|user|>\n",
    "gemma 3": "<s><start_of_turn>user\nbe brief\n\n",
}


LAST_FIRST = {
    "last first": "{% for m in messages | reverse %}{{ m.role + ': ' + m.content }}{% endfor %}"
}


def tokenizer_with(template: str) -> Tokenizer:
    wrapped = wrap(byte_level())
    wrapped.chat_template = template
    return Tokenizer(wrapped)


def first_turn(tokenizer, pinned, messages, **options):
    """Ids of the first messages behind a pin."""
    text = pinned_text(tokenizer, pinned, WritingOptions(**options))
    num_pinned = len(tokenizer.encode(text, add_special_tokens=False))
    conversation = Conversation(pinned=pinned, before=text)
    heard = Heard(conversation, num_pinned, num_pinned, num_pinned, [])
    return next_messages(tokenizer, heard, messages, StreamChatOptions(**options)).new_ids


@pytest.mark.parametrize("name", PINNED)
def test_a_system_message_is_pinned_where_the_template_writes_it(name):
    assert pinned_text(tokenizer_with(TEMPLATES[name]), RULES) == PINNED[name]


@pytest.mark.parametrize("name", PINNED)
def test_pin_and_first_turn_are_the_whole_conversation(name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    question = [{"role": "user", "content": "who are you"}]
    pin = tokenizer.encode(pinned_text(tokenizer, RULES), add_special_tokens=False)
    assert pin + first_turn(tokenizer, RULES, question) == (
        tokenizer.apply_chat_template(RULES + question)
    )


@pytest.mark.parametrize(
    "options", [{"tools": [{"name": "add"}]}, {"chat_template": TEMPLATES["llama 2"]}]
)
def test_a_pin_is_written_as_its_options_say(options):
    tokenizer = tokenizer_with(TEMPLATES["qwen 3"])
    question = [{"role": "user", "content": "who are you"}]
    text = pinned_text(tokenizer, RULES, WritingOptions(**options))
    assert text != PINNED["qwen 3"]
    pin = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.apply_chat_template(RULES + question, StreamChatOptions(**options))
    assert pin + first_turn(tokenizer, RULES, question, **options) == whole


def test_a_space_that_a_question_takes_is_not_pinned():
    tokenizer = tokenizer_with(TEMPLATES["llama 2"])
    assert pinned_text(tokenizer, EXAMPLE) == "<s>[INST] one? [/INST] two. </s><s>[INST]"


def test_content_in_parts_may_be_pinned():
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]
    tokenizer = tokenizer_with(TEMPLATES["chatml"])
    message = {"role": "system", "content": parts}
    assert pinned_text(tokenizer, [message]) == PINNED["chatml"]


@pytest.mark.parametrize(
    ("name", "messages", "reason"),
    [
        ("gemma", RULES, "System role not supported"),
        ("last first", RULES, "does not begin a conversation with 'be brief' .* but with 'user:'"),
        ("qwen 3", [{"role": "assistant", "content": "<think>a</think>b"}], "'<think>a</think>b'"),
        ("chatml", [RULES[0] | {"content": 5}], "the content must be text"),
    ],
)
def test_what_no_conversation_begins_with_is_refused(name, messages, reason):
    with pytest.raises(ValueError, match=reason):
        pinned_text(tokenizer_with((TEMPLATES | LAST_FIRST)[name]), messages)


def test_what_follows_a_pin_begins_with_the_user():
    tokenizer = tokenizer_with(TEMPLATES["chatml"])
    with pytest.raises(ValueError, match="must begin with a message of the user"):
        first_turn(tokenizer, RULES, EXAMPLE[1:])
