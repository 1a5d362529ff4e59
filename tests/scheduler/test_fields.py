"""Values as people write them come out as the field keeps them, or are refused by name."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paged_stream.scheduler.fields import as_bool, as_bytes, as_choice, as_float, as_int

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
    assert as_bytes("size", f"{number}{space}{mode(unit)}") == number * UNITS[unit]


@given(st.decimals(0, 1000, places=3), st.sampled_from(list(UNITS)))
def test_fractions_of_a_byte_are_dropped(number, unit):
    expected = math.floor(Fraction(str(number)) * UNITS[unit])
    assert as_bytes("size", f"{number}{unit}") == expected


@given(st.integers(0, 2**63))
def test_sizes_as_numbers(number):
    assert as_bytes("size", number) == as_bytes("size", str(number)) == number


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
        as_bytes("size", value)


def test_sizes_have_a_least():
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        as_bytes("size", "0GiB", 1)
    assert as_bytes("size", None, optional=True) is None
    with pytest.raises(ValueError, match="size must be an int, got None"):
        as_bytes("size", None)


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
    number = as_float("x", kind(1), 0.0)
    assert number == 1 and isinstance(number, int | float)


@pytest.mark.parametrize("value", [np.float32("nan"), np.float32("inf"), -1, 10**400])
def test_numbers_are_finite_and_in_bounds(value):
    with pytest.raises(ValueError, match=r"x must be in \[0, inf\), got"):
        as_float("x", value, 0.0)


@pytest.mark.parametrize("value", [True, False, np.True_, np.bool_(False)])
def test_switches(value):
    assert as_bool("on", value) is bool(value)


@pytest.mark.parametrize("value", [1, "true", None, np.array([True]), torch.tensor(True)])
def test_what_is_no_switch(value):
    with pytest.raises(ValueError, match="on must be a bool"):
        as_bool("on", value)


def test_choices():
    choices = ("auto", "float32", None)
    assert as_choice("dtype", torch.float32, choices) == "float32"
    assert as_choice("dtype", None, choices) is None
    assert as_choice("dtype", "none", choices, same={"none": None}) is None
    with pytest.raises(ValueError, match=r"one of auto, float32, None, got 'f32'; did you mean"):
        as_choice("dtype", "f32", choices, near={"f32": "float32"})
    for wrong in (torch.int64, "", 3, ["auto"], np.array(["auto", "auto"])):
        with pytest.raises(ValueError, match="dtype must be one of"):
            as_choice("dtype", wrong, choices)
