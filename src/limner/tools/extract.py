"""[extract]: a LoRA from two models. See `limner.tools.extraction`, which needs torch."""

from __future__ import annotations

from limner.config.tools.ranks import Extract
from limner.tools.tool import Progress, Report


def look(section: Extract) -> Report:
    """Which layers would be compared, and how large the file can become. No numbers are read."""
    from limner.tools import extraction

    return extraction.look(section)


def run(section: Extract, progress: Progress) -> Report:
    """Write the LoRA."""
    from limner.tools import extraction

    return extraction.run(section, progress)
