"""[resize]: fewer ranks for a LoRA. See `limner.tools.resizing`, which needs torch."""

from __future__ import annotations

from limner.config.tools.ranks import Resize
from limner.tools.tool import Progress, Report


def look(section: Resize) -> Report:
    """Which layers the file has, and whether all of them can be resized. No numbers are read."""
    from limner.tools import resizing

    return resizing.look(section)


def run(section: Resize, progress: Progress) -> Report:
    """Write the smaller LoRA."""
    from limner.tools import resizing

    return resizing.run(section, progress)
