"""A chat without parameters ends where the model ends its turn; a completion has 16 tokens."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from paged_stream import LLM, AsyncLLMEngine, EngineConfig, SamplingParams
from paged_stream.text.chat import end_of_turn
from paged_stream.text.tokenizer import load_tokenizer
from tests.conftest import VOCAB, save_tokenizer

SETTINGS: dict[str, Any] = {
    "window_size": 24,
    "dtype": "float32",
    "kv_cache_memory_bytes": "4MiB",
    "seed": 3,
}
MESSAGES = [{"role": "user", "content": "hi"}]
END = 0  # </s>, in the vocabulary of `save_tokenizer`
# A random model says it at one place in a hundred: some of so many answers are long, some are not.
CHATS = 20


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(str(folder), **SETTINGS)


def ids_of(deltas) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.delta_token_ids]


def assert_whole(answers: list[list[int]]) -> None:
    """Each goes on to the end token, however far that is."""
    assert [answer.index(END) for answer in answers] == [len(answer) - 1 for answer in answers]
    assert max(map(len, answers)) > 16


def test_chats_go_on_to_the_end(llm):
    outputs = llm.chat([MESSAGES] * CHATS, use_tqdm=False)
    assert_whole([output.outputs[0].token_ids for output in outputs])
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}
    [one] = llm.chat(MESSAGES, use_tqdm=False)
    assert one.outputs[0].token_ids[-1] == END
    [short] = llm.chat(MESSAGES, SamplingParams(max_tokens=5, ignore_eos=True), use_tqdm=False)
    assert len(short.outputs[0].token_ids) == 5


def test_completions_have_16_tokens(llm):
    ignoring = SamplingParams(ignore_eos=True)
    assert len(llm.generate("hi", ignoring, use_tqdm=False)[0].outputs[0].token_ids) == 16
    assert len(llm.generate("hi", use_tqdm=False)[0].outputs[0].token_ids) <= 16


def test_streams(llm):
    with llm.open_stream() as stream:
        assert_whole([ids_of(stream.chat("and then")) for _ in range(CHATS)])
        assert len(ids_of(stream.generate(SamplingParams(ignore_eos=True)))) == 16


def test_async_streams(folder):
    async def converse() -> list[list[int]]:
        async with AsyncLLMEngine(EngineConfig(model=str(folder), **SETTINGS)) as engine:
            stream = await engine.open_stream()
            answers = []
            for _ in range(CHATS):
                answers.append(ids_of([delta async for delta in stream.chat("and then")]))
            return answers

    assert_whole(asyncio.run(converse()))


def test_without_a_window_the_trained_length_is_the_end(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=1, n_head=2, eos_token_id=None
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    llm = LLM(str(tmp_path), dtype="float32", seed=1)
    with llm.open_stream() as stream:
        deltas = list(stream.chat("hi", SamplingParams(max_tokens=None, ignore_eos=True)))
        assert deltas[-1].finish_reason == "length" and stream.position == 64
    [output] = llm.chat(MESSAGES, SamplingParams(max_tokens=None, ignore_eos=True), use_tqdm=False)
    assert output.outputs[0].finish_reason == "length"
    assert len(output.prompt_token_ids) + len(output.outputs[0].token_ids) == 64


def test_the_template_tells_the_end_of_a_turn(folder, bare_folder, tmp_path):
    """Of a checkpoint that names no end token, or another one."""
    model = shutil.copytree(bare_folder, tmp_path / "model")
    (model / "generation_config.json").unlink(missing_ok=True)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"eos_token_id": 1}))
    save_tokenizer(model)
    assert end_of_turn(load_tokenizer(model, "mine")) == END
    [output] = LLM(str(model), **SETTINGS).chat(MESSAGES, use_tqdm=False)
    assert output.outputs[0].token_ids[-1] in (END, 1)
    with LLM(str(model), **SETTINGS).open_stream() as stream:
        answers = [ids_of(stream.chat("hi")) for _ in range(CHATS)]
    assert END in {answer[-1] for answer in answers}
    assert all(END not in answer[:-1] for answer in answers)


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}z{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_templates_without_an_end(folder, tmp_path, template):
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    if template is not None:
        (model / "chat_template.jinja").write_text(template)
    assert end_of_turn(load_tokenizer(model, "mine")) is None
