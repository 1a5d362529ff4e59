"""How every engine and stream writes conversations."""

from __future__ import annotations

from typing import Any

from paged_stream.text.chat_options import ChatOptions
from tests.contract.shared import GREEDY, MESSAGES, SHORT, answers, ids, refuses

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}({{ m.role }}) "
    "{{ m.content }}{{ end | default('.') }}{% endfor %}"
    "{% if add_generation_prompt %}(me){% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "f"}}]
SAID = [*MESSAGES, {"role": "assistant", "content": "well"}]
WRITTEN = [
    (MESSAGES, {"chat_template": TEMPLATE}),
    (MESSAGES, {"chat_template": TEMPLATE, "chat_template_kwargs": {"end": "?"}}),
    (MESSAGES, {"chat_template": TEMPLATE, "add_generation_prompt": False, "tools": TOOLS}),
    (SAID, {"add_generation_prompt": False, "continue_final_message": True}),
    ([{"role": "user", "content": [{"type": "text", "text": "parts"}]}], {}),
]


def test_conversations_are_written_as_their_options_say(engine, reference, stream):
    tokenizer = reference.tokenizer
    for messages, options in WRITTEN:
        text = tokenizer.render_chat_template(messages, ChatOptions(**options))
        prompt = tokenizer.encode(text, add_special_tokens=False)
        [expected] = answers(reference.generate(prompt, GREEDY, use_tqdm=False))
        [found] = answers(engine.chat(messages, GREEDY, use_tqdm=False, **options))
        assert found == expected
        with engine.open_stream() as own:
            assert ids(own.chat(messages, GREEDY, **options)) == expected[1]
    for options in ({"tools": "x"}, {"continue_final_message": True}):
        [name] = options
        with refuses(name):
            engine.chat(MESSAGES, GREEDY, use_tqdm=False, **options)
        with refuses(name):
            next(stream.chat(MESSAGES, GREEDY, **options))
    assert stream.position == 0


def test_later_messages_are_written_as_their_options_say(stream, twin):
    options = {"chat_template": TEMPLATE, "chat_template_kwargs": {"end": "?"}}
    assert ids(stream.chat("a", GREEDY)) == ids(twin.chat("a", GREEDY))
    twin.append("?(user) b?(me)")
    assert ids(stream.chat("b", GREEDY, **options)) == ids(twin.generate(GREEDY))


LOOKS_BACK = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last or m.role == 'user' else "
    "m.content.split('/')[-1] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WIDE: dict[str, Any] = {"chat_template": LOOKS_BACK, "window_size": 200}


def said_before(stream) -> None:
    """A question, and an answer that `LOOKS_BACK` rewrites."""
    list(stream.chat("a", SHORT))
    stream.rewind(stream.position - SHORT.max_tokens)
    stream.append("x/y")


def test_what_a_template_rewrites_is_kept_or_cut_or_refused(engine, reference):
    with engine.open_stream(**WIDE) as stream:
        said_before(stream)
        text, position = stream.visible().text, stream.position
        with refuses("on_rewrite='error': .* writes 'y' where the stream has 'x/y'"):
            next(stream.chat("b", GREEDY, on_rewrite="error"))
        with refuses("on_rewrite must be 'keep', 'cut' or 'error', got 'no'"):
            next(stream.chat("b", GREEDY, on_rewrite="no"))
        assert (stream.visible().text, stream.position) == (text, position)
        stream.park()
        copies = [engine.load_stream(stream.save_bytes()), stream.fork()]
        for each, on_rewrite, kept in (
            (stream, "keep", text),
            (copies[0], "cut", text.replace("x/y", "y")),
            (copies[1], "cut", text.replace("x/y", "y")),
        ):
            deltas = list(each.chat("b", GREEDY, on_rewrite=on_rewrite))
            assert all(delta.template_rewrote for delta in deltas)
            assert each.position > position
            with reference.open_stream(window_size=200) as fresh:
                fresh.append(kept + "</s><user>b</s><assistant>")
                assert ids(deltas) == ids(fresh.generate(GREEDY))
            each.rewind(each.position - GREEDY.max_tokens)  # only what was kept differs now
            assert next(each.chat("c", SHORT)).template_rewrote == (on_rewrite == "keep")
        for each in copies:
            each.close()


def test_a_stream_is_written_as_it_was_opened(engine):
    pin = [{"role": "user", "content": "be brief"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    with engine.open_stream(pin=pin, chat_template=TEMPLATE, tools=tools) as stream:
        text = stream.visible().text
        assert text.startswith('[{"type": "function"') and text.endswith("(user)")
        list(stream.chat("hello", SHORT))
        stream.rewind(stream.position - SHORT.max_tokens)
        assert stream.visible().text.endswith(" hello.(me)")
    with refuses("tools"):
        engine.open_stream(tools="x")
