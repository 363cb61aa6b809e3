"""Presets: small TOML files whose first comment line says what they are for. Limner's own, and the user's in their home.

One whose name begins with `memory-` is about a card's memory alone: it is laid over what is set. The others are about what is
taught, and begin anew.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from limner import errors
from limner.config import Config, files
from limner.config.fields import section_types, values, walk
from limner.errors import printable, wrong

SHIPPED = Path(errors.__file__).parent / "presets"
_ADDED = "memory-"


def all_files(own: Path) -> list[Path]:
    """Limner's, then those in the user's folder; 8 comes before 12."""
    folders = [folder for folder in (SHIPPED, own) if folder.is_dir()]
    return [file for folder in folders for file in sorted(folder.glob("*.toml"), key=_order)]


def _order(file: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() and len(part) < 20 else (0, part) for part in re.split(r"([0-9]+)", file.stem)]


def find(name: str, own: Path) -> Path:
    """The preset of that name, the user's own before Limner's. Raises UserError if there is none."""
    found = {file.stem: file for file in all_files(own)}
    if name not in found:
        near = difflib.get_close_matches(name[:100], found, 1, 0.6)
        remedy = f"Did you mean {near[0]}?" if near else "`limner config presets` lists them."
        raise wrong("preset", f"there is none called {printable(name, 60)!r}.", remedy)
    return found[name]


def about(file: Path) -> str:
    """What it is for: its first line."""
    return files.read_text(file).partition("\n")[0].lstrip("# ")


def is_added(name: str) -> bool:
    """Whether it is laid over what is set, instead of taking its place."""
    return name.startswith(_ADDED)


def families_of(name: str) -> tuple[str, ...]:
    """The families that it is for, as its name says; () if it is for any."""
    families = next(option.choices for option in walk() if option.path == "model.family")
    return tuple(family for family in families if family in name.split("-"))


def stated(file: Path) -> dict[str, str]:
    """The options that it states, be it their defaults: dotted name -> typed text. Raises UserError."""
    text = files.read_text(file)
    raw = files.parse(text, file.name)
    config: Config = files.build(raw, {}, text, file.name)
    said = {f"{section}.{name}" for section, table in raw.items() if isinstance(table, dict) for name in table}
    return {option.path: files.as_typed(option, value) for option, value in values(config) if option.path in said}


def lay(under: Mapping[str, str], over: Mapping[str, str]) -> dict[str, str]:
    """One set of options over another. Where a section changes its kind, the other kind's options do not carry over."""
    changed = set[str]()
    for name in {name for name, tag, _ in section_types() if tag is not None}:
        kind = f"{name}.kind"
        if kind in over and over[kind] != under.get(kind, Config.model_fields[name].default.kind):
            changed.add(name)
    return {path: text for path, text in under.items() if path.partition(".")[0] not in changed} | dict(over)


def laid(names: Sequence[str], own: Path, under: Mapping[str, str] | None = None) -> dict[str, str]:
    """Presets by name, later ones over earlier ones."""
    out = dict(under or {})
    for name in names:
        out = lay(out, stated(find(name, own)))
    return out
