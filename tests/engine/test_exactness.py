"""The engine equals both oracles, whatever the chunking, batching, block size, S and W."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from benchmarks.texts import austen
from paged_stream import LLM, SamplingParams
from tests.conftest import save_tokenizer
from tests.reference import (
    dense_logits,
    published_greedy,
    published_logits,
    random_ids,
    tiny_llama,
    token_logprobs,
)

TOLERANCE = 1e-4  # float32 against float64; a wrong S, W or sink distance shows as 2e-2 and more
SHAPES = {
    "gqa3": {},
    "mha": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 128},
    "mqa": {"num_attention_heads": 4, "num_key_value_heads": 1, "attention_bias": True},
    "wide": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 61},
    "tied": {"tie_word_embeddings": True, "num_hidden_layers": 3},
}


@dataclass(frozen=True)
class Saved:
    """A tiny model and the folder it was saved to: config and weights, no tokenizer."""

    model: LlamaForCausalLM
    folder: Path

    def llm(
        self,
        num_sink_tokens: int,
        window_size: int | None,
        *,
        block_size: int = 16,
        chunk: int = 64,
        max_num_seqs: int = 8,
    ) -> LLM:
        return LLM(
            str(self.folder),
            num_sink_tokens=num_sink_tokens,
            window_size=window_size,
            block_size=block_size,
            max_num_batched_tokens=chunk,
            max_num_seqs=min(max_num_seqs, chunk),
            dtype="float32",
            device="cpu",
            kv_cache_memory_bytes=32 << 20,
        )


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    made: dict[str, Saved] = {}

    def get(shape: str) -> Saved:
        if shape not in made:
            model = tiny_llama(len(made), **SHAPES[shape])
            folder = tmp_path_factory.mktemp(shape)
            model.save_pretrained(folder)
            made[shape] = Saved(model, folder)
        return made[shape]

    return get


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


def assert_scores(scores: list[float | None], expected: torch.Tensor, tolerance=TOLERANCE) -> None:
    assert scores[0] is None  # nothing comes before the first token
    close(torch.tensor(scores[1:]), expected, tolerance)


def all_logprobs(output, vocab_size: int) -> torch.Tensor:
    """[tokens, vocab] of a completion sampled with ``logprobs=vocab_size``."""
    rows = torch.full((len(output.logprobs), vocab_size), torch.nan)
    for row, entry in zip(rows, output.logprobs, strict=True):
        assert sorted(entry.top) == list(range(vocab_size))
        assert entry.logprob == pytest.approx(entry.top[entry.token_id], abs=1e-6)
        row[list(entry.top)] = torch.tensor(list(entry.top.values()))
    return rows


# score


@pytest.mark.parametrize("chunk", [1, 7, 64, None], ids=lambda c: f"chunk{c or '_whole'}")
@pytest.mark.parametrize(
    ("shape", "num_sink_tokens", "window_size", "block_size"),
    [
        ("gqa3", 4, 20, 16),  # the last sink block also holds window tokens
        ("mha", 0, 16, 16),  # no sinks, window of one block
        ("mqa", 8, 13, 8),  # sinks fill their block
        ("wide", 19, 6, 16),  # more sinks than window, over two blocks
        ("tied", 3, 1, 8),  # window of the query alone
        ("gqa3", 0, 1, 16),  # nothing but the query
    ],
)
def test_score_equals_both_oracles(
    saved, shape, num_sink_tokens, window_size, block_size, chunk
) -> None:
    tiny = saved(shape)
    ids = random_ids(tiny.model, max(5 * window_size, 3 * (num_sink_tokens + window_size), 40))
    llm = tiny.llm(num_sink_tokens, window_size, block_size=block_size, chunk=chunk or len(ids))
    scores = llm.score(ids)
    for oracle in (dense_logits, published_logits):
        logits = oracle(tiny.model, ids, num_sink_tokens, window_size)
        assert_scores(scores, token_logprobs(logits, ids))


@settings(max_examples=25)
@given(
    shape=st.sampled_from(sorted(SHAPES)),
    num_sink_tokens=st.integers(0, 40),
    window_size=st.integers(1, 40),
    block_size=st.sampled_from([8, 16, 32]),
    chunk=st.integers(1, 100),
    length=st.integers(2, 240),
)
def test_score_at_random(
    saved, shape, num_sink_tokens, window_size, block_size, chunk, length
) -> None:
    tiny = saved(shape)
    ids = random_ids(tiny.model, length, seed=length)
    llm = tiny.llm(num_sink_tokens, window_size, block_size=block_size, chunk=chunk)
    logits = dense_logits(tiny.model, ids, num_sink_tokens, window_size)
    assert_scores(llm.score(ids), token_logprobs(logits, ids))


def test_score_a_hundred_windows_long(saved) -> None:
    """The ring has gone round many times, and positions are far past the trained length."""
    tiny = saved("gqa3")
    ids = random_ids(tiny.model, 3000)
    llm = tiny.llm(4, 28, chunk=96)
    assert_scores(llm.score(ids), token_logprobs(dense_logits(tiny.model, ids, 4, 28), ids))


def test_score_is_the_same_twice_and_leaves_nothing_behind(saved) -> None:
    tiny = saved("gqa3")
    llm = tiny.llm(4, 20, chunk=32)
    ids, other = random_ids(tiny.model, 90, seed=1), random_ids(tiny.model, 130, seed=2)
    first = llm.score(ids)
    llm.score(other)
    assert_scores(llm.score(ids), torch.tensor(first[1:]), tolerance=1e-6)


# generate


@pytest.mark.parametrize("chunk", [8, 24, 256], ids=lambda c: f"chunk{c}")
@pytest.mark.parametrize(
    ("shape", "num_sink_tokens", "window_size", "block_size"),
    [("gqa3", 4, 20, 16), ("mha", 0, 17, 8), ("mqa", 21, 9, 16), ("tied", 2, 1, 8)],
)
def test_mixed_batch_equals_both_oracles(
    saved, shape, num_sink_tokens, window_size, block_size, chunk
) -> None:
    """Short prompts decode past their window while long ones are still being prefilled."""
    tiny = saved(shape)
    vocab_size = tiny.model.config.vocab_size
    lengths = [1, 3, 5 * window_size + 3, num_sink_tokens + window_size, 150, 40]
    num_tokens = [90, 60, 30, 25, 12, 45]
    prompts = [random_ids(tiny.model, n, seed=i) for i, n in enumerate(lengths)]
    params = [
        SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True, logprobs=vocab_size)
        for n in num_tokens
    ]
    # Four sequences run at a time, so the last two are admitted while others decode.
    llm = tiny.llm(num_sink_tokens, window_size, block_size=block_size, chunk=chunk, max_num_seqs=4)
    results = llm.generate(prompts, params)

    for prompt, count, result in zip(prompts, num_tokens, results, strict=True):
        assert list(result.prompt_token_ids) == prompt
        output = result.outputs[0]
        tokens = list(output.token_ids)
        assert output.finish_reason == "length"
        assert tokens == published_greedy(tiny.model, prompt, count, num_sink_tokens, window_size)
        actual = all_logprobs(output, vocab_size)
        assert [e.token_id for e in output.logprobs] == tokens == actual.argmax(-1).tolist()
        assert all(e.rank == 1 for e in output.logprobs)
        ids = prompt + tokens[:-1]
        for oracle in (dense_logits, published_logits):
            logits = oracle(tiny.model, ids, num_sink_tokens, window_size)
            close(actual, logits[len(prompt) - 1 :].log_softmax(-1))


def test_greedy_equals_transformers_inside_the_window(saved) -> None:
    tiny = saved("gqa3")
    prompts = [random_ids(tiny.model, n, seed=n) for n in (1, 10, 33)]
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    results = tiny.llm(4, 90, chunk=16).generate(prompts, params)
    for prompt, result in zip(prompts, results, strict=True):
        expected = tiny.model.generate(
            torch.tensor([prompt]), max_new_tokens=60, do_sample=False, pad_token_id=0
        )[0, len(prompt) :]
        assert list(result.outputs[0].token_ids) == expected.tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_full_attention_equals_transformers(saved, shape) -> None:
    """A window that nothing leaves is plain causal attention."""
    tiny = saved(shape)
    ids = random_ids(tiny.model, 120)
    with torch.no_grad():
        expected = token_logprobs(tiny.model(torch.tensor([ids])).logits[0], ids)
    assert_scores(tiny.llm(0, len(ids), chunk=50).score(ids), expected)
    assert_scores(tiny.llm(4, 300, chunk=50).score(ids), expected)


# sampling


def test_seeded_tokens_do_not_depend_on_the_batch_or_the_chunks(saved) -> None:
    tiny = saved("gqa3")
    prompts = [random_ids(tiny.model, n, seed=n) for n in (5, 70, 1, 33, 110)]
    seeded = [
        SamplingParams(temperature=0.9, top_p=0.95, max_tokens=50, ignore_eos=True, seed=seed)
        for seed in (11, 12, 13, 14, 15)
    ]

    def tokens(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> list[list[int]]:
        return [list(r.outputs[0].token_ids) for r in llm.generate(prompts, params)]

    alone = [
        tokens(tiny.llm(4, 20), [prompt], [params])[0]
        for prompt, params in zip(prompts, seeded, strict=True)
    ]
    for chunk in (5, 16, 128):
        assert tokens(tiny.llm(4, 20, chunk=chunk), prompts, seeded) == alone
    reordered = tokens(tiny.llm(4, 20, max_num_seqs=3), prompts[::-1], seeded[::-1])
    assert reordered[::-1] == alone

    # Neighbours without a seed, or greedy, draw nothing from a seeded request's stream.
    mixed = list(seeded)
    mixed[0] = SamplingParams(temperature=1.0, max_tokens=64, ignore_eos=True)
    mixed[3] = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    assert [tokens(tiny.llm(4, 20), prompts, mixed)[i] for i in (1, 2, 4)] == [
        alone[i] for i in (1, 2, 4)
    ]


def test_seeds_matter(saved) -> None:
    tiny = saved("gqa3")
    prompt = random_ids(tiny.model, 30)
    params = [
        SamplingParams(temperature=1.0, max_tokens=40, ignore_eos=True, seed=seed)
        for seed in (1, 2, 1)
    ]
    first, second, again = (
        list(r.outputs[0].token_ids) for r in tiny.llm(4, 20).generate([prompt] * 3, params)
    )
    assert first == again
    assert first != second


def test_sampled_logprobs_are_the_models(saved) -> None:
    """Reported before temperature and top_p, for tokens that need not be the most likely."""
    tiny = saved("mha")
    prompt = random_ids(tiny.model, 60)
    params = SamplingParams(temperature=1.3, max_tokens=50, ignore_eos=True, seed=3, logprobs=2)
    output = tiny.llm(4, 20).generate([prompt], params)[0].outputs[0]
    ids = prompt + list(output.token_ids)
    logits = dense_logits(tiny.model, ids, 4, 20)[len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(output.token_ids)[:, None])[:, 0]
    close(torch.tensor([e.logprob for e in output.logprobs]), expected)
    ranks = 1 + (logits.log_softmax(-1) > expected[:, None]).sum(-1)
    assert [e.rank for e in output.logprobs] == ranks.tolist()
    assert ranks.max() > 1


# a trained sink token


def test_sink_token_that_the_tokenizer_prepends(tmp_path) -> None:
    """With one sink token, a stream of many appended texts keeps exactly the trained one."""
    model = tiny_llama(0)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A", special_tokens=[("<unk>", 1)]
    )
    tokenizer.save_pretrained(tmp_path)
    llm = LLM(str(tmp_path), num_sink_tokens=1, window_size=16, dtype="float32")
    texts = ["a stream of text", " that goes on", " far beyond its window of 16 tokens."]
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    with llm.open_stream() as stream:
        ids = [1]
        for text in texts:
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
            stream.append(text)
            actual = [t for delta in stream.generate(params) for t in delta.delta_token_ids]
            assert actual == published_greedy(model, ids, 8, 1, 16)
            ids += actual


# the embedded model

SMOLLM2 = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def smollm2():
    """The model in transformers, float32, with the numbers that its file stands for."""
    from benchmarks.float_folder import float_folder

    folder = float_folder(SMOLLM2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def persuasion() -> str:
    try:
        return austen("persuasion")
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_smollm2_greedy_equals_transformers(smollm2) -> None:
    model, tokenizer = smollm2
    prompt = tokenizer("The water cycle describes")["input_ids"]
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=200, do_sample=False, pad_token_id=0
    )[0, len(prompt) :].tolist()
    assert len(expected) == 200
    params = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True)
    llm = LLM(SMOLLM2, dtype="float32", device="cpu", kv_cache_memory_bytes=512 << 20)
    assert list(llm.generate([prompt], params)[0].outputs[0].token_ids) == expected


@pytest.mark.slow
def test_smollm2_score_equals_transformers(smollm2, persuasion) -> None:
    model, tokenizer = smollm2
    ids = tokenizer(persuasion[:6000])["input_ids"][:1000]
    assert len(ids) == 1000
    llm = LLM(SMOLLM2, dtype="float32", device="cpu", kv_cache_memory_bytes=512 << 20)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    assert_scores(llm.score(ids), token_logprobs(logits, ids), tolerance=1e-3)


@pytest.mark.slow
def test_smollm2_embeddings_equal_transformers(smollm2) -> None:
    model, tokenizer = smollm2
    texts = ["The water cycle describes", "A ship", "A ship at sea. " * 30]
    with torch.no_grad():
        hidden = [
            model.model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0, -1]
            for text in texts
        ]
    expected = torch.nn.functional.normalize(torch.stack(hidden), dim=1)
    llm = LLM(SMOLLM2, dtype="float32", device="cpu", kv_cache_memory_bytes=512 << 20)
    found = torch.tensor([output.outputs.embedding for output in llm.embed(texts)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("num_sink_tokens", "window_size"), [(4, 124), (0, 128)])
def test_smollm2_streaming_score_equals_the_oracle(
    smollm2, persuasion, num_sink_tokens, window_size
) -> None:
    model, tokenizer = smollm2
    ids = tokenizer(persuasion[:6000])["input_ids"][:800]
    llm = LLM(
        SMOLLM2,
        dtype="float32",
        device="cpu",
        num_sink_tokens=num_sink_tokens,
        window_size=window_size,
        max_num_batched_tokens=200,
        kv_cache_memory_bytes=512 << 20,
    )
    logits = dense_logits(model, ids, num_sink_tokens, window_size, dtype=None)
    assert_scores(llm.score(ids), token_logprobs(logits, ids), tolerance=1e-3)
