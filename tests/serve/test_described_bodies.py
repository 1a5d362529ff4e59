"""What the document says of bodies is what is accepted."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from paged_stream import SamplingParams
from paged_stream.serve.bodies import Sampling

FIELDS = Sampling.model_json_schema()["properties"]
ENDS = {"minimum": 0, "exclusiveMinimum": 1e-300, "maximum": 0}  # how far within the range is


def ranges():
    for name, field in FIELDS.items():
        for end, inside in ENDS.items():
            if end in field:
                yield pytest.param(name, end, field[end], inside, id=f"{name}-{end}")


@pytest.mark.parametrize(("name", "end", "limit", "inside"), list(ranges()))
def test_ranges_are_those_that_are_checked(name, end, limit, inside):
    beyond = -1 if "inimum" in end else 1
    # Some fields go with others only, which is another complaint.
    for value, is_refused in [(limit + inside, False), (limit + beyond, True)]:
        try:
            Sampling.model_validate({name: value}).params()
        except ValueError as error:
            assert is_refused or f"{name} must be in" not in str(error)
            if is_refused:
                assert name in str(error)
        else:
            assert not is_refused


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": True},
        {"temperature": False},
        {"stop_token_ids": [True]},
        {"logit_bias": {"3": True}},
    ],
)
def test_true_is_no_number(body):
    with pytest.raises(ValidationError, match="must be a number"):
        Sampling.model_validate(body)


def test_numbers_are_numbers():
    body = {"max_tokens": 5, "temperature": 1, "stop_token_ids": [3], "logit_bias": {"3": 2}}
    assert Sampling.model_validate(body).params() == SamplingParams(
        max_tokens=5, temperature=1.0, stop_token_ids=[3], logit_bias={3: 2.0}
    )
