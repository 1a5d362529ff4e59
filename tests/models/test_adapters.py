"""Requests and streams with LoRA adapters: what PEFT computes, beside others that have none."""

from __future__ import annotations

import asyncio
import shutil

import pytest
import torch

from paged_stream import LLM, AsyncLLMEngine, EngineConfig, LLMEngine, LoRARequest, SamplingParams
from tests.family_reference import VARIANTS, full_logits
from tests.lora_adapter import Adapter
from tests.models.gguf_files import write_gguf

ONE_PER_FAMILY = {settings["model_type"]: name for name, settings in VARIANTS.items()}
SETTINGS = {"dtype": "float32", "window_size": 24, "kv_cache_memory_bytes": 4_000_000}
IDS = [5, 17, 80, 3, 44, 9, 61, 12]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def likelihoods(model, ids):
    logits = full_logits(model, ids)
    return logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.fixture
def adapted(tiny_llama, save, tmp_path):
    """A model's folder, and requests for three adapters of different ranks and modules."""
    model = tiny_llama(head_dim=8)
    chosen = [("", 4), (("q_proj", "v_proj"), 16), ("down_proj", 3)]
    adapters = [Adapter(model, names, rank, seed=rank) for names, rank in chosen]
    requests = [
        LoRARequest(f"adapter-{n}", n, adapter.save(tmp_path / f"adapter-{n}"))
        for n, adapter in enumerate(adapters, 1)
    ]
    return save(model), requests


@pytest.mark.parametrize("family", ONE_PER_FAMILY)
def test_likelihoods_of_every_family(family, tiny, save, tmp_path):
    model = tiny(ONE_PER_FAMILY[family])
    learned = family in ("gpt2", "opt")  # positions, so there is no window
    llm = LLM(save(model), **SETTINGS | ({"window_size": None} if learned else {}))
    ids = [token_id % model.config.vocab_size for token_id in IDS]
    for seed in (1, 2):
        adapter = Adapter(model, seed=seed)
        request = LoRARequest("it", seed, adapter.save(tmp_path / f"{seed}"))
        bare = likelihoods(model, ids)
        undo = adapter.apply()
        expected = likelihoods(model, ids)
        undo()
        assert (expected - bare).abs().max() > 0.1
        found = torch.tensor(llm.score(ids, lora_request=request)[1:])
        assert (found - expected).abs().max() < 1e-4
        assert (torch.tensor(llm.score(ids)[1:]) - bare).abs().max() < 1e-4


def test_heads_that_are_padded(tiny_llama, save, tmp_path):
    """And Q, K and V are rows of their own, with more queries than keys."""
    model = tiny_llama(head_dim=20)
    request = LoRARequest("it", 1, Adapter(model).save(tmp_path / "adapter"))
    with LLM(save(model), **SETTINGS) as llm:
        found = torch.tensor(llm.score(IDS, lora_request=request)[1:])
    Adapter(model).apply()
    assert (found - likelihoods(model, IDS)).abs().max() < 1e-4


def test_beside_weights_in_blocks(tiny_llama, tmp_path):
    model = tiny_llama(hidden_size=64, intermediate_size=96)
    request = LoRARequest("it", 1, Adapter(model).save(tmp_path / "adapter"))
    path = write_gguf(model, tmp_path / "tiny.gguf")
    plain = {"window_size": 24, "kv_cache_memory_bytes": 4_000_000}
    with LLM(path, **plain) as quantised, LLM(path, **plain, quantization=None) as decoded:
        assert quantised.model_config == decoded.model_config
        scores = [
            [torch.tensor(each.score(IDS, lora_request=choice)[1:]) for choice in (None, request)]
            for each in (quantised, decoded)
        ]
    errors = [(one - other).abs().max() for one, other in zip(*scores, strict=True)]
    assert (scores[0][1] - scores[0][0]).abs().max() > 1  # what the adapter changes
    assert max(errors) < 0.2  # what rounding to bfloat16 does


def test_a_batch_of_several_is_each_of_them_alone(adapted):
    """And whoever has none gets, bit for bit, what an engine without adapters gives."""
    folder, requests = adapted
    prompts = [[n + 3, *IDS[:n]] for n in range(8)]
    choices = [None, *requests, None, *requests]
    params = SamplingParams(max_tokens=40, seed=3, logprobs=0, ignore_eos=True)
    with LLM(folder, **SETTINGS) as llm:
        alone = [
            llm.generate(prompt, params, lora_request=choice)[0]
            for prompt, choice in zip(prompts, choices, strict=True)
        ]
        together = llm.generate(prompts, params, lora_request=choices)
        assert llm.list_loras() == {1, 2, 3}
    for one, other in zip(alone, together, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert one.outputs[0].logprobs == other.outputs[0].logprobs
    with LLM(folder, **SETTINGS) as bare:
        for index in (0, 4):
            expected = bare.generate(prompts[index], params)[0].outputs[0]
            assert expected.logprobs == together[index].outputs[0].logprobs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_layers_give_what_their_products_give(adapted, dtype):
    """Bit for bit: with all layers in one op, and with each product by itself."""
    folder, requests = adapted
    found = []
    for settings in ({}, {"check_layers": True}):
        with LLM(folder, **SETTINGS | {"dtype": dtype} | settings) as llm:
            found.append([llm.score(IDS * 5, lora_request=each) for each in requests])
    assert found[0] == found[1]


def test_no_prefix_is_shared_between_adapters(adapted):
    folder, requests = adapted
    ids = IDS * 8
    with LLM(folder, **SETTINGS | {"block_size": 8}) as llm:
        fresh = [LLM(folder, **SETTINGS | {"block_size": 8}) for _ in requests]
        llm.generate(ids, GREEDY)
        for request, other in zip(requests, fresh, strict=True):
            outputs = [e.generate(ids, GREEDY, lora_request=request) for e in (llm, other, llm)]
            assert len({tuple(output[0].outputs[0].token_ids) for output in outputs}) == 1
            other.close()
        assert llm.stats().num_prefix_hits > 0


def test_streams_keep_theirs(adapted, tmp_path):
    """Past the window, forked, parked, saved and loaded."""
    folder, requests = adapted
    with LLMEngine(
        EngineConfig(model=folder, **SETTINGS, parking_memory_bytes=1_000_000)
    ) as engine:

        def go_on(stream):
            return [t for delta in stream.generate(GREEDY) for t in delta.delta_token_ids]

        with engine.open_stream(lora_request=requests[0]) as stream:
            stream.append(IDS * 6)
            first = go_on(stream)
            stream.save(tmp_path / "saved")
            branch = stream.fork()
            stream.park()
            loaded = [
                engine.load_stream(tmp_path / "saved", lora_request=each)
                for each in (requests[0], None)  # it is loaded, and found
            ]
            ends = [go_on(each) for each in (stream, branch, *loaded)]
            assert all(end == ends[0] for end in ends)
            for each in (branch, *loaded):
                each.close()
        with engine.open_stream() as bare:
            bare.append(IDS * 6)
            assert go_on(bare) != first
            bare.save(tmp_path / "bare")
        refused = "computed with an adapter; pass it as lora_request"
        engine.remove_lora(1)
        with pytest.raises(ValueError, match=refused):
            engine.load_stream(tmp_path / "saved")
        with pytest.raises(ValueError, match=refused + ", this is another"):
            engine.load_stream(tmp_path / "saved", lora_request=requests[1])
        with pytest.raises(ValueError, match="without an adapter; leave out lora_request"):
            engine.load_stream(tmp_path / "bare", lora_request=requests[1])


def test_adapters_come_and_go(adapted):
    folder, requests = adapted
    first, second, _ = requests
    with LLMEngine(EngineConfig(model=folder, **SETTINGS)) as engine:
        engine.add_lora(first)
        assert engine.list_loras() == {1}
        shutil.move(first.lora_path, f"{first.lora_path}-elsewhere")  # it is not looked for again
        assert engine.generate(IDS, GREEDY, lora_request=first)
        stream = engine.open_stream(lora_request=first)
        with pytest.raises(ValueError, match="'adapter-1' is in use by a request or an open stre"):
            engine.remove_lora(1)
        stream.close()
        assert engine.remove_lora(1)
        assert not engine.remove_lora(1)
        assert engine.list_loras() == set()
        other = LoRARequest("other", 1, second.lora_path)
        engine.add_lora(other)
        with pytest.raises(ValueError, match="lora_int_id=1 is 'other' from .*; give 'adapter-1'"):
            engine.generate([IDS], lora_request=first)
        # What was computed with the first one is not found by the second.
        assert engine.generate(IDS, GREEDY, lora_request=other)


def test_asynchronous_engines_give_the_same(adapted):
    folder, requests = adapted
    with LLM(folder, **SETTINGS) as llm:
        expected = llm.generate(IDS, GREEDY, lora_request=requests[0])[0].outputs[0].token_ids
        scores = llm.score(IDS, lora_request=requests[0])
        embedding = llm.embed(IDS, lora_request=requests[0])[0].outputs.embedding

    async def ask():
        async with AsyncLLMEngine(EngineConfig(model=folder, **SETTINGS)) as engine:
            deltas = [d async for d in engine.generate(IDS, GREEDY, lora_request=requests[0])]
            assert [t for delta in deltas for t in delta.delta_token_ids] == expected
            assert await engine.score(IDS, lora_request=requests[0]) == scores
            found = await engine.embed(IDS, lora_request=requests[0])
            assert found[0].outputs.embedding == embedding
            async with await engine.open_stream(lora_request=requests[0]) as stream:
                await stream.append(IDS)
                deltas = [d async for d in stream.generate(GREEDY)]
                assert [t for delta in deltas for t in delta.delta_token_ids] == expected
            assert await engine.list_loras() == {1}
            assert await engine.remove_lora(1)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lora_name": ""}, "lora_name must be a string"),
        ({"lora_int_id": 0}, "lora_int_id must be"),
        ({"lora_path": 5}, "lora_path must be"),
    ],
)
def test_what_is_no_request(change, told):
    with pytest.raises(ValueError, match=told):
        LoRARequest(**{"lora_name": "a", "lora_int_id": 1, "lora_path": "b"} | change)


def test_what_cannot_be_used(adapted, tiny_llama, tmp_path):
    folder, requests = adapted
    with LLM(folder, **SETTINGS) as llm:
        with pytest.raises(ValueError, match="must be the folder of a LoRA adapter"):
            llm.generate(IDS, lora_request=LoRARequest("no", 9, tmp_path))
        with pytest.raises(ValueError, match=r"must be one or one per prompt \(2\), got 3"):
            llm.generate([IDS, IDS], lora_request=requests)
        with pytest.raises(ValueError, match="lora_request must be a LoRARequest, got 'adapter'"):
            llm.generate(IDS, lora_request="adapter")
        for size, told in [(48, "which has another shape"), (32, "what the model lacks")]:
            other = tiny_llama(hidden_size=size, num_hidden_layers=4)
            path = Adapter(other, "layers.3.mlp.up_proj" if size == 32 else "").save(
                tmp_path / f"{size}"
            )
            with pytest.raises(ValueError, match=told):
                llm.generate(IDS, lora_request=LoRARequest("other", size, path))
        assert llm.list_loras() == set()
        assert llm.generate(IDS, GREEDY)
