"""Texts that follow each other go on where the stream is, whatever puts them there."""

from __future__ import annotations

import pytest

from paged_stream import SamplingParams
from tests.reference import tiny_llama
from tests.text.seam_kinds import KINDS

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def seam_folder(tmp_path_factory):
    """A model whose tokenizer has BOS and EOS, and a dummy space before each text."""
    folder = tmp_path_factory.mktemp("seams")
    wrapped = KINDS["llama, legacy"].wrapped
    wrapped.chat_template = TEMPLATE
    tiny_llama(0, vocab_size=len(wrapped)).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture
def engine(make_engine, seam_folder):
    with make_engine(seam_folder) as engine:
        yield engine


def ids(deltas) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.delta_token_ids]


def held(stream) -> list[int]:
    sequence = stream.inner.core.peek(stream.inner.seq_id)
    return sequence.token_ids(0, sequence.num_tokens).tolist()


def test_every_way_to_append_goes_on(engine):
    pieces = ["hello wor", "ld, ", "and on", " or", "off"]
    with engine.open_stream() as stream:
        stream.append(pieces[0])
        stream.score(pieces[1])
        stream.append(pieces[2])
        stream.complete(pieces[3], GREEDY).close()  # which appends nothing
        deltas = stream.complete(pieces[3], GREEDY)
        next(deltas)
        stream.append(pieces[4])  # queues behind the turn
        answer = ids(list(deltas))
        found = held(stream)
    text = engine.tokenizer.decode(found, skip_special_tokens=False)
    before = engine.tokenizer.encode("".join(pieces[:4]))
    assert text.startswith("<s> hello world, and on or")
    assert text.endswith("off") and not text.endswith(" off")
    assert len(answer) == 5 and found[0] == before[0] and found.count(before[0]) <= 1 + 6


def test_a_pin_is_the_beginning(engine):
    with engine.open_stream(pin="hello wor") as stream:
        stream.append("ld")
        assert held(stream) == [
            *engine.tokenizer.encode("hello wor"),
            *engine.tokenizer.encode("ld", continues=True),
        ]


def test_a_conversation_that_goes_on_from_text_has_no_second_beginning(engine):
    [bos] = engine.tokenizer.leading_ids
    with engine.open_stream() as stream:
        stream.append("hello")
        list(stream.chat("a world", SamplingParams(max_tokens=1)))
        found = held(stream)[:-1]
    assert found.count(bos) == 1
    text = engine.tokenizer.decode(found, skip_special_tokens=False)
    assert text == "<s> hellouser: a world</s> \nassistant: "


def test_a_conversation_has_the_tokens_of_its_whole_text(engine):
    messages = [{"role": "user", "content": "hello"}]
    with engine.open_stream() as stream:
        answer = ids(stream.chat("hello", GREEDY))
        messages += [
            {"role": "assistant", "content": "lord"},
            {"role": "user", "content": "a world"},
        ]
        whole = engine.tokenizer.apply_chat_template(messages)
        first = engine.tokenizer.apply_chat_template(messages[:1])
        lord = engine.tokenizer.encode("lord", continues=True)
        assert whole[: len(first) + len(lord)] == [*first, *lord]
        list(stream.chat("a world", GREEDY))
        found = held(stream)[: -GREEDY.max_tokens]
    assert found == [*first, *answer, *whole[len(first) + len(lord) :]]
