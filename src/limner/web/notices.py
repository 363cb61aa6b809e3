"""`GET /api/notices`: what was found wrong at the start and should be seen on the page."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from limner.web.context import Context


def router(context: Context) -> APIRouter:
    """The findings of the start."""
    routes = APIRouter()

    @routes.get("/api/notices")
    def notices() -> list[dict[str, Any]]:
        return [asdict(finding) for finding in context.notices]

    return routes
