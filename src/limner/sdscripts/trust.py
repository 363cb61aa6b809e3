"""A configuration can name programs, but not make them run: it may be somebody else's. What may run, the user says once."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from limner import settings
from limner.config.launch import Launch
from limner.errors import Finding, UserError
from limner.runs import home


def untrusted(section: Launch) -> Iterator[Finding]:
    """A finding for each program that is named and not trusted."""
    for field, path in (("launch.sd_scripts", section.sd_scripts), ("launch.python", section.python)):
        if path is not None and path.exists() and not settings.is_trusted(home(), path):
            folder = path if field == "launch.sd_scripts" else path.parent
            said = f"{path} is not a program that you trust so far, and training would run it."
            yield Finding(field, said, f"If it is yours: limner config trust {shlex.quote(str(folder))}")


def require_trust(section: Launch) -> None:
    """Raises UserError if there is one."""
    if found := list(untrusted(section)):
        raise UserError(found)
