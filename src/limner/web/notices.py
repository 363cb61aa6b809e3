"""`GET /api/notices`: what was found wrong at the start, or is wrong with the home now, and should be seen on the page."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from limner import damage, runs
from limner.web.context import Context


def router(context: Context) -> APIRouter:
    """The findings of the start, and those of now."""
    routes = APIRouter()

    @routes.get("/api/notices")
    def notices() -> list[dict[str, Any]]:
        now = [f for f in damage.findings(runs.home()) if not any(f.field == known.field for known in context.notices)]
        return [asdict(finding) for finding in [*context.notices, *now]]

    return routes
