"""What schemathesis does to each request before it sends it."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Bound answers: nothing else ends one, if the penalties that were asked for favour what was
    said before."""
    if isinstance(case.body, dict) and "messages" in case.body:
        case.body.setdefault("max_tokens", 8)
