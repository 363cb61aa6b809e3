"""`/api/settings`: the user's own defaults, read and changed from the page.

Roots and hosts say what the page may reach, so the page cannot change them: they stand in `settings.toml` and in the flags.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Body

from limner import runs, settings
from limner.errors import Finding, UserError, wrong
from limner.settings import Settings
from limner.web import places, words
from limner.web.context import Context

FOLDERS = ("pictures", "models", "output")
CHANGEABLE = (*FOLDERS, "theme", "language", "defaults")


def router(context: Context) -> APIRouter:
    """GET reads; POST changes the settings it names and leaves the others. Both answer with all of them; in `defaults`, the
    folder for results stands as `output.path` unless that has a value of its own. Both refuse while the file is damaged.
    """
    routes = APIRouter()

    @routes.get("/api/settings")
    def read() -> dict[str, Any]:
        kept = _sound(*settings.read(runs.home()))
        output = {} if kept.output is None else {"output.path": str(kept.output)}
        choices = {"themes": settings.THEMES, "languages": words.LANGUAGES}
        said = {**choices, "defaults": output | dict(kept.defaults), "home": str(runs.home())}
        return settings.plain(kept) | said

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

        def changed(kept: Settings, findings: list[Finding]) -> Settings:
            new, wrongs = settings.parse({**settings.plain(_sound(kept, findings)), **changes})
            if wrongs:
                raise UserError(wrongs)
            return new

        settings.change(runs.home(), changed)
        return read()

    return routes


def _sound(kept: Settings, findings: list[Finding]) -> Settings:
    """The settings. Raises UserError if the file as a whole cannot be read; what is wrong in it was said at the start."""
    if whole := [finding for finding in findings if finding.field == settings.NAME]:
        raise UserError(whole)
    return kept
