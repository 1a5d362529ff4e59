"""What the contract says of every stream holds for streams over HTTP, too."""

from __future__ import annotations

import pytest

from paged_stream import EngineConfig, LLMEngine
from tests.contract import test_streams
from tests.contract.engines import SETTINGS
from tests.serve.http_streams import HttpEngine
from tests.serve.services import serve_engine

# Not among them: what has no place in HTTP, such as functions and the content of files; tests of
# wrong types, which are told in other words; and how few tokens a turn is ahead of its reader.
for name in (
    "test_streams_are_opened_as_they_are_asked_for",
    "test_turns",
    "test_a_completed_prompt_is_an_appended_one",
    "test_texts_that_follow_each_other_are_one_text",
    "test_what_the_next_token_will_see",
    "test_a_pin_is_what_every_conversation_begins_with",
    "test_a_turn_begins_with_its_first_item",
    "test_during_a_turn",
    "test_edits",
    "test_forks_draw_on_their_own",
):
    globals()[name] = getattr(test_streams, name)


@pytest.fixture(scope="module")
def engine(folder, tmp_path_factory):
    state_dir = tmp_path_factory.mktemp("state")
    with serve_engine(folder, state_dir=state_dir, **SETTINGS) as base:
        yield HttpEngine(base)


@pytest.fixture(scope="module")
def reference(folder):
    with LLMEngine(EngineConfig(model=str(folder), **SETTINGS)) as engine:
        yield engine


@pytest.fixture
def stream(engine):
    with engine.open_stream() as stream:
        yield stream


@pytest.fixture
def twin(reference):
    with reference.open_stream() as stream:
        yield stream
