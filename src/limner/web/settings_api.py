"""`/api/settings`: the user's own defaults, read and changed from the page.

Roots and hosts say what the page may reach, so the page cannot change them: they stand in `settings.toml` and in the flags.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Body

from limner import runs, settings
from limner.errors import UserError, wrong
from limner.web import places, words
from limner.web.context import Context

FOLDERS = ("pictures", "models", "output")
CHANGEABLE = (*FOLDERS, "theme", "language", "defaults")


def router(context: Context) -> APIRouter:
    """GET reads; POST changes the settings it names and leaves the others. Both answer with all of them."""
    routes = APIRouter()

    @routes.get("/api/settings")
    def read() -> dict[str, Any]:
        kept, _ = settings.read(runs.home())
        choices = {"themes": settings.THEMES, "languages": words.LANGUAGES}
        return {**settings.plain(kept), **choices, "home": str(runs.home())}

    @routes.post("/api/settings")
    def change(changes: Any = Body()) -> dict[str, Any]:
        if not isinstance(changes, dict):
            raise wrong("settings", "is not a table of settings.", "Send an object.")
        for key in changes:
            if key not in CHANGEABLE:
                raise wrong(str(key), "cannot be changed here.", f"There are: {', '.join(CHANGEABLE)}.")
        for key in FOLDERS:
            if changes.get(key):
                changes[key] = str(places.resolve(changes[key], context.roots, field=key))
        kept, _ = settings.read(runs.home())
        new, findings = settings.parse({**settings.plain(kept), **changes})
        if findings:
            raise UserError(findings)
        settings.write(runs.home(), new)
        return read()

    return routes
