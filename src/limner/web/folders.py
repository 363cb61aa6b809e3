"""`GET /api/folders?path=`: what is in a folder, for choosing one in the page."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from limner.web import places
from limner.web.context import Context


def router(context: Context) -> APIRouter:
    """Without a path: the allowed roots."""
    routes = APIRouter()

    @routes.get("/api/folders")
    def folders(path: str = "") -> dict[str, Any]:
        return places.listing(path, context.roots)

    return routes
