"""Logits that are not finite end the request that they are for, with an error that says so, and
nothing else.

The model overflows where it reads one token, and nowhere else. So it is known which requests end
and where, and what all others give.
"""

from __future__ import annotations

import math

import pytest
import torch

from paged_stream import LLM, EngineConfig, LLMEngine, SamplingParams
from tests.contract.engines import EVERY_ENGINE, SETTINGS
from tests.overflowing import save_overflowing
from tests.reference import tiny_llama

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPT = [5, 6, 7, 8]
OTHER = [9, 10, 11]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> list[list[int]]:
    """What the model says to both prompts if no token makes it overflow."""
    folder = save_overflowing(tmp_path_factory.mktemp("sound"), None)
    with LLMEngine(EngineConfig(model=str(folder), **SETTINGS)) as engine:
        outputs = engine.generate([PROMPT, OTHER], GREEDY, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def bad_token(sound) -> int:
    """One that the first answer comes to, and neither prompt nor the other answer has."""
    first, other = sound
    return next(t for i, t in enumerate(first) if i > 2 and t not in {*PROMPT, *OTHER, *other})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bad_token):
    return save_overflowing(tmp_path_factory.mktemp("overflows"), bad_token)


@pytest.fixture(params=EVERY_ENGINE)
def implementation(request):
    if request.param.needs_ray:
        request.getfixturevalue("ray")
    return request.param


def message(position: int) -> str:
    return f"the model's logits for position {position} are not finite"


@pytest.mark.parametrize("num_decode_steps", [1, 4])
def test_the_request_ends_and_its_neighbour_goes_on(
    implementation, folder, sound, bad_token, num_decode_steps
):
    with implementation.make(folder, num_decode_steps=num_decode_steps) as engine:
        bad, good = engine.generate([PROMPT, OTHER], GREEDY, use_tqdm=False)
        end = sound[0].index(bad_token) + 1
        assert bad.outputs[0].token_ids == sound[0][:end]
        assert bad.outputs[0].finish_reason == "error"
        assert bad.outputs[0].error == message(len(PROMPT) + end)
        assert good.outputs[0].token_ids == sound[1]
        assert (good.outputs[0].finish_reason, good.outputs[0].error) == ("length", None)
        assert engine.stats().num_failed_turns == 1
        with pytest.raises(ValueError, match=f"cannot be scored: {message(4)}"):
            engine.score([OTHER, [5, 6, 7, bad_token, 8, 9]], use_tqdm=False)
        with pytest.raises(ValueError, match="cannot be embedded: the hidden state at position 3"):
            engine.embed([OTHER, [5, 6, 7, bad_token]], use_tqdm=False)
        [output] = engine.embed([5, 6, 7, bad_token, 8], use_tqdm=False)
        assert all(map(math.isfinite, output.outputs.embedding))
        with engine.open_stream() as stream:
            deltas = list(stream.complete(PROMPT, GREEDY))
            assert (deltas[-1].finish_reason, deltas[-1].error) == (
                "error",
                message(len(PROMPT) + end),
            )
            # The turn is over, not the stream: before the token, all is as it was.
            stream.rewind(len(PROMPT) + end - 1)
            stream.append(sound[0][end : end + 1])
            assert (
                list(stream.generate(SamplingParams(temperature=0, max_tokens=1)))[-1].error is None
            )
            with pytest.raises(ValueError, match="cannot be scored: the model's logits"):
                stream.score([bad_token, 5, 6])
        assert engine.stats().num_failed_turns == 5


def test_steps_that_follow_unseen_ones_change_nothing(folder, sound, bad_token):
    config = EngineConfig(model=str(folder), num_decode_steps=3, **SETTINGS)
    with LLMEngine(config) as engine:
        engine.core.executor.runs_ahead = True
        bad, good = engine.generate([PROMPT, OTHER], GREEDY, use_tqdm=False)
    end = sound[0].index(bad_token) + 1
    assert (bad.outputs[0].token_ids, bad.outputs[0].finish_reason) == (sound[0][:end], "error")
    assert good.outputs[0].token_ids == sound[1]


def test_every_copy_of_a_request_ends(folder, bad_token):
    prompt = [5, 6, bad_token, 7, 8]
    with LLM(str(folder), **SETTINGS) as llm:
        params = SamplingParams(n=3, max_tokens=4, prompt_logprobs=0, ignore_eos=True)
        [output] = llm.generate([prompt], params, use_tqdm=False)
        assert [each.finish_reason for each in output.outputs] == ["error"] * 3
        assert {each.error for each in output.outputs} == {message(3)}
        assert llm.stats().num_failed_turns == 3
        assert llm.stats().num_used_blocks == 0 and not llm.has_unfinished_requests()
        # Of the last token alone, each copy hears when it would begin.
        params = SamplingParams(n=3, max_tokens=4, ignore_eos=True)
        [output] = llm.generate([[5, 6, bad_token]], params, use_tqdm=False)
        assert [each.finish_reason for each in output.outputs] == ["error"] * 3


@pytest.mark.parametrize("part", ["layer", "last layer", "head"])
def test_the_first_part_is_named(part, tmp_path):
    model = tiny_llama(0)
    with torch.no_grad():
        if part == "head":
            model.lm_head.weight.fill_(3e38)
        else:
            mlp = model.model.layers[-1 if part == "last layer" else 0].mlp
            mlp.gate_proj.weight.fill_(1e25)
            mlp.up_proj.weight.fill_(1e25)
    model.save_pretrained(tmp_path)
    with LLM(str(tmp_path), check_layers=True, **SETTINGS) as llm:
        [output] = llm.generate([PROMPT], GREEDY, use_tqdm=False)
    first = {"layer": "layer 0", "last layer": "layer 1"}.get(part, f"the {part}")
    assert output.outputs[0].error.endswith(f"the first that were not are those of {first}")


def test_checked_layers_give_the_same_tokens(folder, sound):
    with LLM(str(folder), check_layers=True, **SETTINGS) as llm:
        [_, good] = llm.generate([PROMPT, OTHER], GREEDY, use_tqdm=False)
    assert good.outputs[0].token_ids == sound[1]
