"""The tab "Tools"."""

from __future__ import annotations

from limner.config.fields import section_types
from limner.config.tools import Tools
from limner.config.tools.base import ToolSection
from limner.web.context import Context
from limner.web.form import form_schema
from limner.web.panel import panel

NAME, TITLE = "tools", "Tools"


def build(context: Context) -> None:
    """Put the tab's components into the page being built."""
    kinds = {name: kind for name, _, kind in section_types(Tools) if issubclass(kind, ToolSection)}
    schema = form_schema(context.words, Tools)
    for section in schema:  # what all tools share comes last
        kind = kinds[section["name"]]
        section |= {"title": context.words(kind.title), "group": context.words(kind.group)}
        section["options"].sort(key=lambda option: option["path"].endswith(".overwrite"))
    panel("toolbox", schema=schema)
