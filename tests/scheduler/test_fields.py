"""Values as people write them come out as the field keeps them, or are refused by name."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paged_stream.scheduler.fields import Bytes, Integer, Number, Switch, as_int
from paged_stream.scheduler.word_fields import Choice, Integers, Text, Texts

UNITS = {
    "": 1,
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
MODES = [str, str.lower, str.upper]


@given(
    st.integers(0, 10**6),
    st.sampled_from(list(UNITS)),
    st.sampled_from(["", " ", "  "]),
    st.sampled_from(MODES),
)
def test_whole_sizes(number, unit, space, mode):
    assert Bytes(0).check("size", f"{number}{space}{mode(unit)}") == number * UNITS[unit]


@given(st.decimals(0, 1000, places=3), st.sampled_from(list(UNITS)))
def test_fractions_of_a_byte_are_dropped(number, unit):
    expected = math.floor(Fraction(str(number)) * UNITS[unit])
    assert Bytes(0).check("size", f"{number}{unit}") == expected


@given(st.integers(0, 2**63))
def test_sizes_as_numbers(number):
    assert Bytes(0).check("size", number) == Bytes(0).check("size", str(number)) == number


@pytest.mark.parametrize(
    "value",
    [
        "",
        "GiB",
        "4G",
        "4 gigs",
        "-1GiB",
        "4GiBit",
        "1e9",
        "four",
        "4,5GB",
        "٤GB",
        1.5,
        True,
        b"4GiB",
    ],
)
def test_what_is_no_size(value):
    with pytest.raises(ValueError, match="^size must be"):
        Bytes(0).check("size", value)


def test_sizes_have_a_least():
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        Bytes(1).check("size", "0GiB")
    assert Bytes(1, optional=True).check("size", None) is None
    with pytest.raises(ValueError, match="size must be an int, got None"):
        Bytes(1).check("size", None)


@pytest.mark.parametrize("kind", [int, np.int64, np.int8, np.uint16])
def test_integers_of_any_kind(kind):
    number = as_int("n", kind(4), 1)
    assert number == 4 and type(number) is int


@pytest.mark.parametrize("value", [True, np.True_, 4.0, np.float64(4), "4", np.array([4])])
def test_what_is_no_integer(value):
    with pytest.raises(ValueError, match="n must be an int, got"):
        as_int("n", value)


def test_bounds_of_numpy_integers():
    with pytest.raises(ValueError, match="n must be >= 1, got 0$"):
        as_int("n", np.int64(0), 1)


@pytest.mark.parametrize("kind", [int, float, np.float32, np.float64, np.int64, Fraction])
def test_numbers_of_any_kind(kind):
    number = Number(0.0).check("x", kind(1))
    assert number == 1 and isinstance(number, int | float)


@pytest.mark.parametrize("value", [np.float32("nan"), np.float32("inf"), -1, 10**400])
def test_numbers_are_finite_and_in_bounds(value):
    with pytest.raises(ValueError, match=r"x must be in \[0, inf\), got"):
        Number(0.0).check("x", value)


@pytest.mark.parametrize("value", [True, False, np.True_, np.bool_(False)])
def test_switches(value):
    assert Switch().check("on", value) is bool(value)


@pytest.mark.parametrize("value", [1, "true", None, np.array([True]), torch.tensor(True)])
def test_what_is_no_switch(value):
    with pytest.raises(ValueError, match="on must be a bool"):
        Switch().check("on", value)


def test_choices():
    choice = Choice(("auto", "float32"), optional=True)
    assert choice.check("dtype", torch.float32) == "float32"
    assert choice.check("dtype", None) is None
    assert choice.check("dtype", "none") is None
    near = Choice(("auto", "float32"), near={"f32": "float32"}, same={"float": "float32"})
    assert near.check("dtype", "float") == "float32"
    with pytest.raises(ValueError, match=r"one of auto, float32, got 'f32'; did you mean"):
        near.check("dtype", "f32")
    with pytest.raises(ValueError, match=r"one of auto, float32, None, got 'f32'$"):
        choice.check("dtype", "f32")
    for wrong in (torch.int64, "", 3, ["auto"], np.array(["auto", "auto"])):
        with pytest.raises(ValueError, match="dtype must be one of"):
            choice.check("dtype", wrong)


TEXT = st.text().filter(str.strip)


@given(st.integers())
def test_integers_in_text(number):
    kind = Integer(optional=True)
    assert kind.check("n", kind.parse(str(number))) == number
    assert kind.parse("none") is None and kind.parse("None") is None


@given(st.floats(0, 1e30))
def test_numbers_in_text(number):
    kind = Number(0.0)
    assert kind.check("x", kind.parse(repr(number))) == number


@given(st.lists(TEXT), TEXT)
def test_lists_in_text(texts, text):
    kind = Texts()
    assert kind.check("stop", kind.parse(json.dumps(texts))) == tuple(texts)
    expected = json.loads(text) if _is_json_list_of_texts(text) else [text]
    assert kind.check("stop", kind.parse(text)) == tuple(expected)


def _is_json_list_of_texts(text):
    try:
        items = json.loads(text)
    except ValueError:
        return False
    return isinstance(items, list) and all(isinstance(item, str) for item in items)


@given(st.lists(st.integers(0)))
def test_lists_of_integers_in_text(numbers):
    kind = Integers()
    assert kind.check("ids", kind.parse(json.dumps(numbers))) == tuple(numbers)
    for number in numbers:
        assert kind.check("ids", kind.parse(str(number))) == (number,)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("False", False), ("1", True), ("0", False)]
)
def test_switches_in_text(text, value):
    assert Switch().parse(text) is value


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Integer(), "wide"),
        (Integer(), "1.5"),
        (Integer(), "none"),
        (Integer(), "1_000"),
        (Number(0.0), "wide"),
        (Number(0.0), "none"),
        (Switch(), "yes"),
        (Integers(), "wide"),
        (Integers(), "[1, true]"),
        (Bytes(0), "wide"),
        (Text("a+", "a word of a"), "b"),
        (Texts(), ""),
    ],
)
def test_text_that_stands_for_nothing_is_refused(kind, text):
    with pytest.raises(ValueError, match="^name must be .*, got "):
        kind.check("name", kind.parse(text))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Integer(), "int"),
        (Integer(1), "int >= 1"),
        (Integer(1, 9), "int in [1, 9]"),
        (Number(0.0), "number in [0, inf)"),
        (Number(0.0, 1.0, open_low=True), "number in (0, 1]"),
        (Number(0.0, infinite=True), "number in [0, inf]"),
        (Choice(("a", "b")), "a, b"),
    ],
)
def test_what_is_allowed_in_words(kind, words):
    assert kind.allowed == words
