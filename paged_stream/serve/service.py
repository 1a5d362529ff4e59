"""What the routes of one application share: what answers, under which name, and its vocabulary."""

from __future__ import annotations

import time

from paged_stream.serve.backend import Backend
from paged_stream.serve.errors import UnknownModelError
from paged_stream.serve.token_texts import Vocabulary


class Service:
    """One model, as clients know it.

    Args:
        model: its name.
    """

    def __init__(self, backend: Backend, model: str) -> None:
        self.backend = backend
        self.model = model
        self.started = int(time.time())
        self.vocabulary = Vocabulary(backend.engine)

    def check_model(self, name: str | None) -> None:
        """Refuse a request for another model; one that names none is for this one.

        Raises:
            UnknownModelError: there is no such model.
        """
        if name is not None and name != self.model:
            raise UnknownModelError(f"there is no model {name!r}; this is {self.model!r}")
