"""``/v1/models``: what is served here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from paged_stream.serve.service import Service


class ModelRoutes:
    """Describes the one model of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.router = APIRouter(prefix="/v1/models")
        self.router.get("")(self.list)
        self.router.get("/{name:path}")(self.describe)  # a path may be a name

    async def list(self) -> dict[str, Any]:
        return {"object": "list", "data": [await self.describe(self._service.model)]}

    async def describe(self, name: str) -> dict[str, Any]:
        self._service.check_model(name)
        return {
            "id": self._service.model,
            "object": "model",
            "created": self._service.started,
            "owned_by": "paged_stream",
        }
