"""The tab "Runs"."""

from __future__ import annotations

from limner.web.context import Context
from limner.web.panel import panel

NAME, TITLE = "runs", "Runs"


def build(context: Context) -> None:
    """Put the tab's components into the page being built."""
    del context
    panel("runs")
