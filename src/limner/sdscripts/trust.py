"""A configuration can name programs, but not make them run: it may be somebody else's. What may run, the user says once.

A pickled model is a program too: sd-scripts unpickles some without bounds (torch.load with weights_only=False), so each is
looked through here before.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from limner import settings
from limner.config import Config
from limner.config.fields import paths
from limner.config.launch import Launch
from limner.errors import Finding, UserError
from limner.formats.single import header_of, is_pickled
from limner.runs import home


def untrusted(section: Launch) -> Iterator[Finding]:
    """A finding for each program that is named and not trusted."""
    for field, path in (("launch.sd_scripts", section.sd_scripts), ("launch.python", section.python)):
        if path is not None and path.exists() and not settings.is_trusted(home(), path):
            folder = path if field == "launch.sd_scripts" else path.parent
            said = f"{path} is not a program that you trust so far, and training would run it."
            yield Finding(field, said, f"If it is yours: limner config trust {shlex.quote(str(folder))}")


def untrusted_files(config: Config) -> Iterator[Finding]:
    """The findings of each pickled file that a configuration names, lies in no folder that is trusted, and holds more than
    tensors."""
    named = {path: field for field, path in [*paths(config), ("model.base", Path(config.model.base))]}
    for path, field in named.items():
        if is_pickled(path) and path.is_file() and not settings.is_trusted(home(), path):
            try:
                header_of(path, field)
            except UserError as error:
                yield from error.findings


def require_trust(section: Launch) -> None:
    """Raises UserError if there is one."""
    if found := list(untrusted(section)):
        raise UserError(found)
