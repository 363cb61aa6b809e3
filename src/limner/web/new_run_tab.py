"""The tab "New run"."""

from __future__ import annotations

from limner.web import form
from limner.web.context import Context
from limner.web.panel import panel

NAME, TITLE = "new-run", "New run"


def build(context: Context) -> None:
    """Put the tab's components into the page being built."""
    panel("new_run")
    form.build(context)
