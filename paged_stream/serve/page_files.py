"""The page that shows a service's streams, at ``/``."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

PAGE_PATHS = "/page/"  # below which its files are; they are no secret, unlike what they show

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_FILES = {path.name: path for path in _FOLDER.iterdir() if path.suffix in _TYPES}
# It runs nothing but its own scripts, asks nobody but its own service, and is shown in no frame.
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; "
    "form-action 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_router() -> APIRouter:
    """Routes of the page and of its files. They are not part of the documented API."""
    router = APIRouter(include_in_schema=False)

    def add(path: str, file: Path) -> None:
        async def send() -> FileResponse:
            return FileResponse(file, media_type=_TYPES[file.suffix], headers=_HEADERS)

        router.get(path)(send)

    add("/", _FILES["index.html"])
    for name, file in _FILES.items():
        add(PAGE_PATHS + name, file)
    return router
