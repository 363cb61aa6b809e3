"""The schema of the tools: one section a tool, one file a kind of work. What holds for `config` holds here."""

from __future__ import annotations

from limner.config.base import Section
from limner.config.tools.base import ToolSection
from limner.config.tools.publish import Publish
from limner.config.tools.ranks import Extract, Resize


class Tools(Section):
    """What one use of a tool is asked to do: just one section is given. Its options are named `merge.base`, and so on."""

    extract: Extract | None = None
    resize: Resize | None = None
    publish: Publish | None = None


def the_section(tools: Tools) -> tuple[str, ToolSection]:
    """The name and the options of the tool that is asked for."""
    ((name, section),) = [(n, s) for n in type(tools).model_fields if (s := getattr(tools, n)) is not None]
    return name, section
