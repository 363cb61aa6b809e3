"""What all tools' options share."""

from __future__ import annotations

from typing import ClassVar

from limner.config.base import Section, option


class ToolSection(Section):
    """A tool's options. Its docstring says what the tool is for, in one or two sentences; the page shows it."""

    title: ClassVar[str]
    """Its name on the page."""
    group: ClassVar[str]
    """The heading that it stands under there."""
    done_by: ClassVar[str]
    """The module of `limner.tools` that does it: see `limner.tools.tool`."""


class Writing(ToolSection):
    """The options of a tool that writes a file or folder."""

    overwrite: bool = option(False)
    """Replace what is there already under the name to be written. Without it nothing is overwritten."""
