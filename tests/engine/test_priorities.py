"""What gives its place to a higher priority goes on with the tokens that it would have had."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace

import pytest

from paged_stream import SamplingParams, StructuredOutputsParams
from tests.engine.stream_oracle import tokens_of

WANTED = 40  # tokens of each endless request that are compared
FIXED = {"chunk_size": 8, "enable_prefix_caching": False}
KINDS = {
    "greedy": SamplingParams(temperature=0.0, logprobs=1),
    "sampled": SamplingParams(temperature=1.3, top_p=0.9, top_k=30, logprobs=0),
    "penalties": SamplingParams(repetition_penalty=1.4, presence_penalty=0.5, temperature=0.7),
    "stop string": SamplingParams(stop=["e%"], temperature=1.5, min_tokens=3),
    "regular expression": SamplingParams(
        structured_outputs=StructuredOutputsParams(regex="([a-c]{7}[0-9]){40}"), temperature=2.0
    ),
    "prompt": SamplingParams(prompt_logprobs=0, temperature=0.0),
    "several": SamplingParams(n=2, temperature=1.1),
}


@dataclass
class Request:
    name: str
    arrival: int  # step
    priority: int
    prompt: list[int]
    params: SamplingParams


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    reason: str | None = None


def requests() -> list[Request]:
    """Endless ones of low priority that take all places at once, and shorter ones of higher
    priorities that come later."""
    generator = random.Random(5)
    made = []
    for index, (kind, params) in enumerate([*KINDS.items()] * 3):
        is_late = index >= len(KINDS)
        length = generator.choice([2, 11, 40, 70])
        made.append(
            Request(
                f"{index} {kind}",
                generator.randrange(4, 60) if is_late else 0,
                generator.choice([0, 1, 2]) if is_late else 3,
                [generator.randrange(2, 97) for _ in range(length)],
                replace(
                    params,
                    seed=index,
                    max_tokens=generator.randint(3, 20) if is_late else None,
                    ignore_eos=True,
                ),
            )
        )
    return made


def answers(engine, wanted, *, flat=False) -> dict:
    """Drive the engine until all that is not endless is over, and the rest has enough tokens.

    Args:
        flat: give all the same priority.
    """
    found: dict = defaultdict(Answer)
    left = sorted(wanted, key=lambda request: request.arrival)
    endless = {request.name for request in wanted if request.params.max_tokens is None}
    number = 0
    while left or engine.has_unfinished_requests():
        while left and left[0].arrival <= number:
            request = left.pop(0)
            priority = 0 if flat else request.priority
            engine.add_request(request.name, request.prompt, request.params, priority=priority)
            for index in range(request.params.n):
                found[request.name, index]
        for delta in engine.step():
            answer = found[delta.request_id, delta.index]
            answer.token_ids += delta.delta_token_ids
            answer.text += delta.delta_text
            for entries in (delta.prompt_logprobs, delta.logprobs):
                answer.logprobs += [entry.logprob for entry in entries or ()]
            answer.reason = delta.finish_reason or answer.reason
        for name in endless:
            answered = [answer for (other, _), answer in found.items() if other == name]
            if all(a.reason is not None or len(a.token_ids) >= WANTED for a in answered):
                engine.abort_request(name)
        number += 1
        engine.core.scheduler.check_integrity()
    for (name, _), answer in found.items():
        if name in endless and answer.reason is None:
            del answer.token_ids[WANTED:], answer.logprobs[WANTED:]
            answer.text = answer.text[: WANTED - 10]
    return found


@pytest.mark.parametrize(
    ("settings", "scarce"),
    [
        (FIXED, {"max_num_seqs": 3}),
        (FIXED, {}),
        (FIXED | {"kv_cache_dtype": "int8"}, {}),
        (FIXED | {"dtype": "bfloat16"}, {"parking_memory_bytes": 0}),
        ({"enable_prefix_caching": True}, {"max_num_seqs": 3}),
    ],
    ids=["places", "memory", "int8", "bfloat16 on disk", "prefix caching"],
)
def test_tokens_are_those_of_an_engine_without_contention(make_engine, tmp_path, settings, scarce):
    wanted = requests()
    roomy = make_engine(**settings, max_num_seqs=24)
    expected = answers(roomy, wanted, flat=True)
    assert roomy.stats().num_preemptions == 0
    row = 6 * roomy.core.executor.cache_plan.block_bytes
    small = make_engine(
        **(settings | {"kv_cache_memory_bytes": 2 * row, "parking_dir": tmp_path} | scarce)
    )
    found = answers(small, wanted)
    if "chunk_size" not in settings:  # then rounding depends on the chunks
        for answer in (*found.values(), *expected.values()):
            answer.logprobs.clear()
    assert found == expected
    stats = small.stats()
    assert stats.num_preemptions > 5
    assert stats.num_running == stats.num_waiting == stats.num_used_blocks == 0
    assert stats.parked_host_bytes == stats.parked_disk_bytes == 0


def test_two_endless_requests_give_way_at_once(make_engine):
    engine = make_engine(max_num_seqs=2)
    endless = SamplingParams(max_tokens=None, ignore_eos=True)
    for name in ("a", "b"):
        engine.add_request(name, [5, 6], endless, priority=1)
    for _ in range(10):
        engine.step()
    engine.add_request("urgent", [7], SamplingParams(max_tokens=2, ignore_eos=True))
    assert {delta.request_id for delta in engine.step()} == {"a", "urgent"}


def test_what_gave_its_place_is_counted_where_it_lies(make_engine):
    engine = make_engine(kv_cache_memory_bytes=5 * 8 * 512)  # room for one
    engine.add_request(
        "low", list(range(2, 60)), SamplingParams(max_tokens=None, ignore_eos=True), priority=1
    )
    for _ in range(5):
        engine.step()
    engine.add_request("high", [7], SamplingParams(max_tokens=3, ignore_eos=True))
    engine.step()
    stats = engine.stats()
    assert stats.parked_host_bytes == (4 + 23) * 512
    assert (stats.num_running, stats.num_waiting, stats.num_preemptions) == (1, 1, 1)
    for _ in range(4):
        engine.step()
    assert engine.stats().parked_host_bytes == 0


def test_the_turn_of_a_stream_gives_way_and_goes_on(make_engine):
    found = []
    for disturbed in (False, True):
        engine = make_engine(kv_cache_memory_bytes=5 * 8 * 512)
        stream = engine.open_stream()
        stream.append(list(range(2, 60)))
        params = SamplingParams(max_tokens=20, ignore_eos=True, seed=3)
        reading = stream.generate(params)
        deltas = [next(reading) for _ in range(5)]
        if disturbed:
            engine.add_request("high", [7] * 9, replace(params, max_tokens=9), priority=-1)
        deltas += reading
        assert engine.stats().num_preemptions == disturbed
        found.append(tokens_of(deltas))
        assert len(found[-1]) == 20
    assert found[0] == found[1]
