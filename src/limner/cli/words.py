"""Options as they are typed: `--section.name value`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from limner.errors import wrong

_OPTIONS = "Options by name, such as --optimizer.lr 1e-4, and --preset NAME, which can be given several times."
Options = Annotated[str, Parameter(allow_leading_hyphen=True, help=_OPTIONS)]


def pairs(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(name, value) of `--a.b value`, `--a.b=value` and a bare `--a.b` (true). Raises UserError for anything else."""
    pending = list(words)
    while pending:
        word = pending.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise wrong(word, "is not an option.", "Options are written --section.name value.")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = pending.pop(0) if pending and not pending[0].startswith("--") else "true"
        yield name, value


def repeated(words: tuple[str, ...]) -> dict[str, list[str]]:
    """Name -> its values in their order, for options that may come several times. Raises UserError as `pairs` does."""
    out: dict[str, list[str]] = {}
    for name, value in pairs(words):
        out.setdefault(name, []).append(value)
    return out


def load(words: tuple[str, ...]):
    """(config) from an optional TOML file, followed by presets and options. Presets count more than the file, later ones more
    than earlier ones, options most."""
    from limner import runs
    from limner.config import files, presets

    has_file = bool(words) and not words[0].startswith("--")
    given = list(pairs(words[has_file:]))
    laid = presets.laid([value for name, value in given if name == "preset"], runs.home() / "presets")
    overrides = presets.lay(laid, {name: value for name, value in given if name != "preset"})
    return files.read(Path(words[0]), overrides) if has_file else files.build({}, overrides)
