"""How one row is generated: as the run says, but for what columns of the row say themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from paged_stream.batch.prompts import row_values
from paged_stream.batch.row_task import RowTask, check_row_params
from paged_stream.scheduler.sampling_params import SamplingParams
from paged_stream.scheduler.settings import settings_of

_FIELDS = frozenset(settings_of(SamplingParams))


def row_params(task: RowTask, row: Mapping[str, Any]) -> tuple[SamplingParams, bool]:
    """The parameters of a row, and whether it has a seed of its own.

    A column named as a field of `SamplingParams` is that field. Any other column has an object of
    such fields, or the JSON of one. What is null, or not there, is as in the task.

    Raises:
        ValueError: a column holds something else, or a value that its field does not take.
    """
    given: dict[str, Any] = {}
    for name, value in row_values(row, task.sampling_columns).items():
        given |= {name: value} if name in _FIELDS else _fields(name, value)
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return task.sampling_params, False
    try:
        params = replace(task.sampling_params, **given)
    except TypeError as error:  # there is no such field, and what to write instead
        raise ValueError(str(error)) from None
    check_row_params(params)
    return params, "seed" in given


def _fields(name: str, value: Any) -> Mapping[str, Any]:
    """The fields in a column that holds several."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"column {name!r} is no JSON: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(
            f"column {name!r} must be an object of sampling parameters, got {value!r:.80}"
        )
    return value
