"""Chat templates that look back: a stream holds its messages as the template wrote them, or writes
them now; and what comes next is what a fresh engine says to these ids."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from paged_stream import SamplingParams
from paged_stream.text import conversation
from paged_stream.text.chat_options import ChatOptions
from tests.reference import tiny_llama
from tests.text.chat_templates import TEMPLATES

SPECIAL = ["</s>", "<unk>", "<s>", "<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>"]
SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>"]
LETTERS = ["\n", *map(chr, range(32, 127))]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
ONE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
RULES = [{"role": "system", "content": "be brief"}]
THOUGHT = "<think>\nHm.\n</think>\n\n"


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    """A model that has a token for each letter, and for what templates mark messages with."""
    folder = tmp_path_factory.mktemp("chatting")
    vocab = {token: index for index, token in enumerate([*SPECIAL, *LETTERS])}
    tiny_llama(0, vocab_size=len(vocab), eos_token_id=0).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    wrapped.chat_template = TEMPLATES["chatml"]
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture
def engine(make_engine, chatting):
    with make_engine(chatting, window_size=400) as engine:
        yield engine


@pytest.fixture
def open_stream(engine):
    """Open a stream that writes as one of `TEMPLATES`."""

    def opened(name, **options):
        return engine.open_stream(chat_template=TEMPLATES[name], **options)

    return opened


def rewrote(deltas) -> bool:
    """Whether the deltas of a turn say so; all of them say the same."""
    [said] = {delta.template_rewrote for delta in deltas}
    return said


def ask(stream, messages, answer: str | None = None, **options) -> bool:
    """Chat, with this answer instead of the model's; returns what `rewrote` does."""
    said = rewrote(stream.chat(messages, ONE, **options))
    stream.rewind(stream.position - 1)
    if answer is not None:
        stream.append(answer)
    return said


def rendered(engine, messages, **options) -> list[int]:
    return engine.tokenizer.apply_chat_template(messages, ChatOptions(**options))


def talk(*said: str) -> list[dict]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


def goes_on_like_fresh(engine, stream) -> None:
    """The stream says what a fresh one says that was fed its ids."""
    with engine.open_stream() as fresh:
        fresh.append(stream.visible().token_ids)
        expected = [t for delta in fresh.generate(GREEDY) for t in delta.delta_token_ids]
    with stream.fork() as fork:
        assert [t for delta in fork.generate(GREEDY) for t in delta.delta_token_ids] == expected


# By template: two answers, the first of which it rewrites, and the token behind answers.
REWRITES = {
    "qwen 3": (THOUGHT + "Yes.", "So.", "<|im_end|>"),
    "deepseek r1": ("Hm.\n</think>\n\nYes.", "Ha\n</think>So.", "</s>"),
    "llama 3.2": (" \nYes. ", "So.", "<|eot_id|>"),
}


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", REWRITES)
def test_what_the_template_rewrites_stays_or_is_cut_or_is_refused(engine, open_stream, name, ends):
    written = {"chat_template": TEMPLATES[name]}
    answer, second, end = REWRITES[name]
    first = rendered(engine, talk("hi"), **written)
    whole = rendered(engine, talk("hi", answer, "Why?"), **written)
    with open_stream(name) as stream:
        assert not ask(stream, "hi", answer + end * ends)
        before, position = stream.visible(), stream.position
        with pytest.raises(ValueError, match="on_rewrite='error': the chat template writes"):
            next(stream.chat("Why?", ONE, on_rewrite="error"))
        assert (stream.visible(), stream.position) == (before, position)
        with stream.fork() as kept:
            assert ask(kept, "Why?")
            tail = engine.tokenizer.decode(whole, skip_special_tokens=False).rpartition("Yes.")[2]
            said = [*engine.encode(answer, continues=True), *engine.encode(tail, continues=True)]
            assert kept.visible().token_ids == [*first, *said]
            goes_on_like_fresh(engine, kept)
        assert ask(stream, "Why?", on_rewrite="cut")
        assert stream.visible().token_ids == whole
        assert stream.position > position
        goes_on_like_fresh(engine, stream)
        # What was cut is now as the template writes it; only the new answer may differ.
        stream.append(second + end * ends)
        assert ask(stream, "Oh", on_rewrite="cut") == (name == "deepseek r1")
        whole = rendered(engine, talk("hi", answer, "Why?", second, "Oh"), **written)
        assert stream.visible().token_ids == whole
        goes_on_like_fresh(engine, stream)


def test_all_that_was_kept_may_be_cut_later(engine, open_stream):
    """Several answers at once, and what was said behind them."""
    answer = THOUGHT + "Yes."
    with open_stream("qwen 3") as stream:
        ask(stream, [*RULES, *talk("one")], answer)
        assert ask(stream, "two", answer) and ask(stream, "three", "No.")
        assert ask(stream, "four", on_rewrite="cut")
        messages = [*RULES, *talk("one", answer, "two", answer, "three", "No.", "four")]
        expected = rendered(engine, messages, chat_template=TEMPLATES["qwen 3"])
        assert stream.visible().token_ids == expected
        stream.append("Yes.")
        assert not ask(stream, "five", on_rewrite="error")


def test_another_date_is_another_beginning(engine, open_stream):
    name, today = "llama 3.2", {"chat_template_kwargs": {"date_string": "5 May 2025"}}
    with open_stream(name) as stream:
        ask(stream, "hi", "Yes.")
        assert ask(stream, "Why?", "So.", **today)
        assert not ask(stream, "Oh", "Ah.")  # as it was at first
        assert ask(stream, "Then?", on_rewrite="cut", **today)
        messages = talk("hi", "Yes.", "Why?", "So.", "Oh", "Ah.", "Then?")
        whole = rendered(engine, messages, chat_template=TEMPLATES[name], **today)
        assert stream.visible().token_ids == whole
        goes_on_like_fresh(engine, stream)


def test_sink_tokens_are_not_cut(open_stream):
    today = {"chat_template_kwargs": {"date_string": "5 May 2025"}}
    for options in ({"num_sink_tokens": 50}, {"pin": RULES}):
        with open_stream("llama 3.2", **options) as stream:
            ask(stream, "hi", "Yes.")
            before = stream.visible()
            with pytest.raises(ValueError, match="on_rewrite='cut': .* cannot be cut"):
                next(stream.chat("Why?", ONE, on_rewrite="cut", **today))
            assert stream.visible() == before
            assert ask(stream, "Why?", **today)


@pytest.mark.parametrize("name", ["gemma 3", "llama 2", "llama 3", "qwen 2", "zephyr"])
def test_a_pinned_system_message_is_never_rewritten(engine, open_stream, name):
    """Also where it is folded into a message that has left the window."""
    with open_stream(name, pin=RULES, window_size=150) as stream:
        said, answer = [], " a." if name == "llama 2" else "a."  # as these models begin
        for number in range(12):
            said.append(f"q{number}?")
            assert not ask(stream, said[-1], answer, on_rewrite="error")
            said.append(answer)
            if number == 1:
                whole = rendered(engine, [*RULES, *talk(*said[:-1])], chat_template=TEMPLATES[name])
                assert stream.visible().token_ids[: -len(answer)] == whole
        assert stream.stats().num_evicted_tokens > 100
        remembered = stream.inner.conversation.exchanges
        assert 1 <= len(remembered) < 8
        assert remembered[0].start >= stream.stats().window_start


def test_memory_is_bounded(open_stream, monkeypatch):
    with open_stream("chatml", window_size=100) as stream:
        ask(stream, "x" * 1000, "y" * 1000)
        [left] = stream.inner.conversation.exchanges
        assert not left.messages and not left.text
        for number in range(30):
            ask(stream, f"{number}", "yes")
            assert len(stream.inner.conversation.exchanges) <= 4
        monkeypatch.setattr(conversation, "MAX_CHARS", 150)
        ask(stream, "short", "yes")
        assert len(stream.inner.conversation.exchanges) == 1
        assert not ask(stream, "short", "yes", on_rewrite="error")


@pytest.mark.parametrize("name", ["qwen 3", "deepseek r1"])
def test_thoughts_longer_than_the_window(engine, open_stream, name):
    """What is left of the answer is cut, and replaced by what the template leaves of it."""
    thought = "<think>" * (name == "qwen 3") + "x" * 300 + "</think>"
    with open_stream(name, window_size=150) as stream:
        ask(stream, "hi", thought + "Yes.")
        with stream.fork() as kept:
            assert ask(kept, "Why?")
            assert "</think>Yes." in kept.visible().text
        assert ask(stream, "Why?", on_rewrite="cut")
        messages = talk("hi", "Yes.", "Why?")
        whole = rendered(engine, messages, chat_template=TEMPLATES[name])
        tail = engine.tokenizer.decode(whole, skip_special_tokens=False).partition("Yes.")
        assert stream.visible().text.endswith("".join(tail[1:]))
        assert "think>Y" not in stream.visible().text and "x" not in stream.visible().text
        goes_on_like_fresh(engine, stream)


def test_what_comes_between_is_the_answer(engine, open_stream):
    written = {"chat_template": TEMPLATES["qwen 3"]}
    with open_stream("qwen 3") as stream:
        stream.append("Once.\n")
        ask(stream, "hi", "<think>\n")
        list(stream.complete("Hm", GREEDY))
        stream.score("\n</think>\n\nYe")
        stream.append("s.")
        with stream.fork() as cut:
            assert ask(cut, "Why?", on_rewrite="cut")
            whole = rendered(engine, talk("hi", "Yes.", "Why?"), **written)
            assert cut.visible().token_ids == [*engine.encode("Once.\n"), *whole]
        text = stream.visible().text
        assert ask(stream, "Why?")
        assert stream.visible().text.startswith(text + "<|im_end|>\n<|im_start|>user\nWhy?")


def test_an_answer_may_go_on_from_a_message(engine, open_stream):
    goes_on = {"add_generation_prompt": False, "continue_final_message": True}
    for begin in ("Well", "Well, "):
        with open_stream("llama 3") as stream:
            ask(stream, talk("hi", begin), " yes", **goes_on)
            assert not ask(stream, "Why?", on_rewrite="error")
            said = talk("hi", begin.rstrip() + " yes", "Why?")
            whole = rendered(engine, said, chat_template=TEMPLATES["llama 3"])
            assert stream.visible().token_ids == whole


def test_the_conversation_goes_where_the_stream_goes(engine, open_stream):
    """Saved, parked, forked and rewound streams remember what they hold."""
    with open_stream("qwen 3", pin=RULES) as stream:
        ask(stream, "one", "Yes.")
        begun = stream.position
        ask(stream, "two", THOUGHT + "No.")
        stream.park()
        copies = [engine.load_stream(stream.save_bytes()), stream.fork()]
        for each in (*copies, stream):
            with each.fork() as fork:
                assert ask(fork, "three", on_rewrite="cut")
                expected = [*RULES, *talk("one", "Yes.", "two", "No.", "three")]
                written = rendered(engine, expected, chat_template=TEMPLATES["qwen 3"])
                assert fork.visible().token_ids == written
            each.rewind(begun)
            assert not ask(each, "three", on_rewrite="error")
            expected = [*RULES, *talk("one", "Yes.", "three")]
            written = rendered(engine, expected, chat_template=TEMPLATES["qwen 3"])
            assert each.visible().token_ids == written
            each.rewind(each.stats().num_sink_tokens)
            assert not ask(each, "four")
            written = rendered(engine, [*RULES, *talk("four")], chat_template=TEMPLATES["qwen 3"])
            assert each.visible().token_ids == written
        for each in copies:
            each.close()


def test_rewinding_into_a_message_leaves_a_piece_of_an_answer(open_stream):
    with open_stream("chatml") as stream:
        ask(stream, "one", "Yes.")
        for _ in range(2):
            ask(stream, "two")
            stream.rewind(stream.position - len("o#\n#assistant\n"))
            text = stream.visible().text
            assert not ask(stream, "three", on_rewrite="error")
            assert stream.visible().text.startswith(text + "<|im_end|>\n<|im_start|>user\nthree")
        stream.rewind(6)  # within the first message
        text = stream.visible().text
        assert not ask(stream, "four")
        assert stream.visible().text.startswith(text + "<|im_end|>\n<|im_start|>user\nfour")


def test_messages_that_were_cut_are_forgotten(engine, open_stream):
    with open_stream("chatml") as stream:
        ends = []
        for number in range(4):
            ask(stream, f"q{number}", "Yes.")
            ends.append(stream.position)
        stream.cut(ends[0] + 5, ends[1] - 2)
        assert len(stream.inner.conversation.exchanges) == 2
        with stream.fork() as fork:
            assert not ask(fork, "Why?", on_rewrite="error")
        stream.cut(ends[2] + 5, ends[3] - 2)  # what is left of the last answer is an answer
        text = stream.visible().text
        assert text.endswith("s.")
        assert not ask(stream, "Why?", on_rewrite="error")
        assert stream.visible().text.startswith(text + "<|im_end|>\n<|im_start|>user\nWhy?")


def test_what_a_stream_is_opened_with_is_how_it_is_written(engine, open_stream):
    tools = [{"type": "function", "function": {"name": "add"}}]
    options = {"chat_template_kwargs": {"enable_thinking": False}, "tools": tools}
    written = ChatOptions(chat_template=TEMPLATES["qwen 3"], **options)
    with open_stream("qwen 3", pin=RULES, **options) as stream:
        assert "add" in stream.visible().text
        loaded = engine.load_stream(stream.save_bytes())
        for each in (stream, loaded):
            ask(each, "hi", "Yes.")
            text = engine.tokenizer.render_chat_template([*RULES, *talk("hi")], written)
            assert each.visible().text == text + "Yes."
            assert ask(each, "Why?", tools=[])
        loaded.close()
    with pytest.raises(ValueError, match="tools must be a list"):
        open_stream("qwen 3", tools="add")


def test_a_truncated_message_is_forgotten(open_stream):
    with open_stream("chatml") as stream:
        ask(stream, "one", "Yes.")
        short = SamplingParams(temperature=0, max_tokens=1, truncate_prompt_tokens=5)
        assert not rewrote(stream.chat("two", short))
        assert not ask(stream, "three", on_rewrite="error")


NEVER = ["chatml", "llama 3", "gemma 3", "phi 3", "zephyr", "qwen 2"]
WORDS = st.text("ab .", min_size=1, max_size=12).map(lambda text: f"x{text}x")


@settings(max_examples=60)
@given(
    name=st.sampled_from(NEVER),
    has_rules=st.booleans(),
    is_pinned=st.booleans(),
    rounds=st.lists(
        st.tuples(
            WORDS, st.lists(WORDS, max_size=2), st.sampled_from(["", "park", "fork", "save"])
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_a_stream_is_one_rendering_of_its_conversation(
    engine, open_stream, name, has_rules, is_pinned, rounds
):
    """Whatever is said, with a template that never rewrites, and whoever says it: the answer comes
    in any number of pieces."""
    pin = {"pin": RULES} if has_rules and is_pinned else {}
    messages = RULES if has_rules else []
    stream = open_stream(name, **pin)
    for number, (question, pieces, change) in enumerate(rounds):
        new = [{"role": "user", "content": question}]
        first = RULES if has_rules and not is_pinned and number == 0 else []
        assert not ask(stream, [*first, *new], on_rewrite="error")
        messages = [*messages, *new]
        whole = rendered(engine, messages, chat_template=TEMPLATES[name])
        assert stream.visible().token_ids == whole
        for piece in pieces:
            stream.append(piece)
        messages.append({"role": "assistant", "content": "".join(pieces)})
        if change == "park":
            stream.park()
        elif change:
            old = stream
            stream = old.fork() if change == "fork" else engine.load_stream(old.save_bytes())
            old.close()
    goes_on_like_fresh(engine, stream)
    stream.close()
