"""``/v1/models``: what is served here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from paged_stream.serve.service import Service


class ModelRoutes:
    """Describes the model of a service, and its adapters."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.router = APIRouter(prefix="/v1/models")
        self.router.get("")(self.list)
        self.router.get("/{name:path}")(self.describe)  # a path may be a name

    async def list(self) -> dict[str, Any]:
        names = self._service.models
        return {"object": "list", "data": [await self.describe(name) for name in names]}

    async def describe(self, name: str) -> dict[str, Any]:
        is_adapter = self._service.adapter(name) is not None
        return {
            "id": name,
            "object": "model",
            "created": self._service.started,
            "owned_by": "paged_stream",
            "parent": self._service.model if is_adapter else None,
        }
