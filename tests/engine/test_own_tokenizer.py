"""``tokenizer=``: a tokenizer that is not the model's own, wherever a model is named."""

from __future__ import annotations

import pytest

from paged_stream import LLM, SamplingParams
from paged_stream.batch.batch_config import BatchConfig
from paged_stream.batch.plan import make_plan
from paged_stream.evaluation.perplexity import tokenizer_of
from tests.contract.engines import SETTINGS

GREEDY = SamplingParams(temperature=0, max_tokens=5)


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"messages": "hello"}\n')
    return tmp_path / "in.jsonl"


def test_an_engine_takes_it(bare_folder, folder):
    with (
        LLM(str(bare_folder), tokenizer=folder, **SETTINGS) as llm,
        LLM(str(folder), **SETTINGS) as whole,
    ):
        for prompt in ("hello", [5, 6]):
            [output] = llm.generate(prompt, GREEDY, use_tqdm=False)
            [expected] = whole.generate(prompt, GREEDY, use_tqdm=False)
            assert output.prompt_token_ids == expected.prompt_token_ids
            assert output.outputs[0].text == whole.get_tokenizer().decode(
                output.outputs[0].token_ids, skip_special_tokens=True
            )
        assert llm.get_tokenizer()("hello") == whole.get_tokenizer()("hello")


def test_without_one_text_is_refused(bare_folder):
    with LLM(str(bare_folder), **SETTINGS) as llm:
        for use in (lambda: llm.generate("a"), llm.get_tokenizer):
            with pytest.raises(ValueError, match="has no tokenizer.* name one with tokenizer="):
                use()


def test_what_is_none_is_refused(bare_folder, tmp_path):
    with pytest.raises(ValueError, match="tokenizer='nope' is no folder"):
        LLM(str(bare_folder), tokenizer="nope", **SETTINGS)
    with pytest.raises(ValueError, match=f"tokenizer='{tmp_path}': no tokenizer"):
        LLM(str(bare_folder), tokenizer=str(tmp_path), **SETTINGS)


def test_a_batch_takes_it(bare_folder, folder, questions, tmp_path):
    def config(**engine):
        return BatchConfig(
            input=str(questions),
            output=str(tmp_path / "out"),
            model=str(bare_folder),
            task="chat",
            engine=engine,
        )

    with pytest.raises(ValueError, match="needs a tokenizer"):
        make_plan(config())
    assert make_plan(config(tokenizer=str(folder))).engine.tokenizer == str(folder)


def test_nodes_of_a_batch_find_it(bare_folder, folder, questions, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    config = BatchConfig(
        input=str(questions),
        output=str(tmp_path / "out"),
        model=str(bare_folder),
        engine={"tokenizer": folder.name},
    )
    assert config.engine_config.tokenizer == str(folder)


def test_evaluations_take_it(bare_folder, folder):
    settings = {"model": str(bare_folder), "tokenizer": str(folder)}
    assert tokenizer_of(settings).encode("hello")
    with pytest.raises(ValueError, match="no tokenizer"):
        tokenizer_of({"model": str(bare_folder)})
