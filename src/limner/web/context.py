"""What every part of the page is given: the settings, where it may read and write, and the words of its language."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from limner.errors import Finding
from limner.settings import Settings
from limner.web.words import Words


@dataclass(frozen=True)
class Context:
    """One server's circumstances; nothing here changes while it runs."""

    settings: Settings
    roots: tuple[Path, ...]
    """The folders that people at the page may read from and write to, resolved; see `web.places`."""
    words: Words
    notices: tuple[Finding, ...] = ()
    """What was found wrong at the start and should be seen on the page."""
    loopback: bool = True
    """Whether only this machine's own browsers can come here directly."""
