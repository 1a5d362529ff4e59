"""What is remembered of conversations stays bounded."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")

from paged_stream.serve.conversation_store import _NUM_ITEMS, Conversation


def test_only_so_many_items_wait_for_an_answer():
    conversation = Conversation("conv_1", {}, 0)
    items = [{"id": str(number)} for number in range(_NUM_ITEMS)]
    conversation.add(items)
    with pytest.raises(ValueError, match=f"at most {_NUM_ITEMS} items"):
        conversation.add(items[:1])
    assert conversation.said == list(conversation.items) == items
