"""The user's own defaults, in `settings.toml` in Limner's home: folders, roots, theme, language."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the page starts from."""

    pictures: Path | None = None
    models: Path | None = None
    output: Path | None = None
    roots: tuple[Path, ...] = ()
    theme: str = "system"
    language: str = "en"
