"""Settings are written once: everything that is said of a field comes from its class."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass

import pytest

from paged_stream.batch.batch_config import BatchConfig
from paged_stream.config import EngineConfig
from paged_stream.pool.pool_options import PoolOptions
from paged_stream.scheduler.fields import Integer
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.settings import argument_help, check_fields, setting, settings_of, takes
from paged_stream.scheduler.word_fields import Text
from paged_stream.serve.serve_options import ServeOptions

CLASSES = [EngineConfig, SamplingParams, BatchConfig, PoolOptions, ServeOptions]


@dataclass(frozen=True, kw_only=True)
class Example:
    """Settings of an example.

    Args:
        name: of whoever; see
            ``width``.
        width: in metres. ``None`` is any.

    Raises:
        ValueError: this is no argument.
    """

    name: str = dataclasses.field(metadata=takes(Text()))
    width: int | None = setting(3, Integer(1, optional=True), in_requests=False)
    about: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


def test_a_class_is_described_by_its_fields_and_its_docstring():
    name, width = settings_of(Example).values()
    assert (name.name, name.default, name.help) == (
        "name",
        dataclasses.MISSING,
        "of whoever; see ``width``.",
    )
    assert (width.default, width.kind) == (3, Integer(1, optional=True))
    assert (name.in_requests, width.in_requests, width.on_command_line) == (True, False, True)


def test_fields_are_checked_and_kept():
    assert Example(name="a", width=None) == Example(name="a", width=None)
    with pytest.raises(ValueError, match="^width must be >= 1, got 0$"):
        Example(name="a", width=0)
    with pytest.raises(ValueError, match="^name must be text, got 3$"):
        Example(name=3)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_has_help_and_the_help_no_other(cls):
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    assert list(argument_help(cls)) == fields
    assert all(argument_help(cls).values())


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_has_a_kind(cls):
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    others = {"model", "engine", "sampling_params"} if cls is BatchConfig else set()
    assert fields - settings_of(cls).keys() == others  # which have classes of their own


@pytest.mark.parametrize("cls", CLASSES)
def test_defaults_are_allowed(cls):
    for name, field in settings_of(cls).items():
        if field.default is not dataclasses.MISSING:
            assert field.kind.check(name, field.default) == field.default


def test_without_docstrings_there_is_no_help_and_all_else():
    code = (
        "from paged_stream.scheduler.settings import settings_of;"
        "from paged_stream.scheduler.sampling_params import SamplingParams as P;"
        "print(settings_of(P)['n'].help == '', P(n=2))"
    )
    command = [sys.executable, "-OO", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "True SamplingParams(n=2)\n"
