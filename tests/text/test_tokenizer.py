"""The wrapper gives what transformers' AutoTokenizer gives."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from paged_stream.text.chat_options import ChatOptions
from paged_stream.text.tokenizer import load_tokenizer

TEXTS = ["", "hello there", "  two  spaces , and . dots\n\n", "naïve café 東京 🎉 123", "</s>he"]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why is the sky blue?"},
]


@pytest.fixture
def pair(tiny_llama, save):
    folder = save(tiny_llama())
    return load_tokenizer(folder, "mine"), AutoTokenizer.from_pretrained(folder)


def test_text_equals_transformers(pair):
    tokenizer, oracle = pair
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids == oracle.encode(text)
        for skip in (True, False):
            assert tokenizer.decode(ids, skip_special_tokens=skip) == oracle.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )


def test_special_tokens_are_optional(tiny_llama, save):
    folder = save(tiny_llama())
    oracle = AutoTokenizer.from_pretrained(folder, add_bos_token=True)
    oracle.save_pretrained(folder)
    tokenizer = load_tokenizer(folder, "mine")
    assert tokenizer.encode("he") == [1, *tokenizer.encode("he", add_special_tokens=False)]


def test_chat_template_equals_transformers(pair):
    tokenizer, oracle = pair
    for prompt in (True, False):
        expected = oracle.apply_chat_template(
            MESSAGES, add_generation_prompt=prompt, tokenize=False
        )
        options = ChatOptions(add_generation_prompt=prompt)
        assert tokenizer.render_chat_template(MESSAGES, options) == expected
        expected = oracle.apply_chat_template(
            MESSAGES, add_generation_prompt=prompt, return_dict=False
        )
        assert tokenizer.apply_chat_template(MESSAGES, options) == expected


def test_parts_of_text(pair):
    tokenizer, _ = pair
    parts = [{"type": "text", "text": "hello "}, {"type": "text", "text": "there"}]
    message = {"role": "user", "content": "hello there"}
    assert tokenizer.render_chat_template([message | {"content": parts}]) == (
        tokenizer.render_chat_template([message])
    )


def test_chat_errors(pair, tiny_llama, save):
    tokenizer, _ = pair
    with pytest.raises(ValueError, match="messages: the chat template refuses them: no tools here"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])
    with pytest.raises(ValueError, match="messages: 'hi' is no message; pass dicts"):
        tokenizer.apply_chat_template(["hi"])
    with pytest.raises(ValueError, match="messages: {'role': 'user'} is no message; pass dicts"):
        tokenizer.apply_chat_template([{"role": "user"}])
    with pytest.raises(ValueError, match="content must be text, or parts of text"):
        tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    folder = save(tiny_llama())
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template; pass a prompt"):
        load_tokenizer(folder, "mine").apply_chat_template(MESSAGES)


def test_long_text_is_no_warning(pair, capsys):
    assert len(pair[0].encode("x y " * 5000)) == 20000
    assert capsys.readouterr().err == ""
