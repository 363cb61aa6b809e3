"""Which paths the page may name: resolved, links followed, they must lie in an allowed folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from limner.errors import printable, wrong


def resolve(text: str, roots: Iterable[Path], *, field: str = "path", must_exist: bool = True) -> Path:
    """The real path that `text` names. Raises UserError where it is none, or lies in none of `roots`."""
    shown = printable(text, 100)
    try:
        path = Path(text).expanduser()
        if not path.is_absolute():
            raise wrong(field, f"{shown!r} is not a full path.", "Write it from the root of the disk on.")
        real = path.resolve()
        exists = real.exists()
    except (OSError, ValueError, RuntimeError):
        raise wrong(field, f"{shown!r} is not a path on this system.", "Choose another one.") from None
    allowed = [root.resolve() for root in roots]
    if not any(real.is_relative_to(root) for root in allowed):
        remedy = "Choose a place inside an allowed folder; `limner web --allowed-path FOLDER` allows another."
        raise wrong(field, f"{shown} lies outside the folders that this page may use.", remedy)
    if must_exist and not exists:
        raise wrong(field, f"{shown} does not exist.", "Choose another one.")
    return real
