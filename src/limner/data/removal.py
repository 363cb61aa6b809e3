"""Putting pictures away with their captions: moves into a hidden folder beside them, so that it can be undone."""

from __future__ import annotations

import os
from pathlib import Path

from limner.data.captions import check_extensions
from limner.data.survey import Survey
from limner.data.undo import Change, Move
from limner.errors import wrong

REMOVED = ".limner-removed"
"""The folder inside the dataset's that they go to. Its name begins with a point: no scan looks into it."""


def removal(found: Survey, names: list[str], extensions: tuple[str, ...]) -> list[Change]:
    """The moves that put the pictures of these names away; broken ones may be named too.

    A caption goes along unless a picture that stays has it too. Raises UserError for a name that is not in the folder,
    and for an extension that is none of a caption.
    """
    check_extensions(extensions)
    if not names:
        raise wrong("pictures", "none are chosen.", "Choose some.")
    going = set(names)
    stays = {os.path.splitext(row.picture.path)[0] for row in found.rows if row.name not in going}
    out: dict[Path, Change] = {}
    for name in names:
        if name not in found.by_name and name not in found.broken:
            raise wrong("pictures", f"{name!r} is not in the folder (any more).", "Look at the folder again.")
        picture = found.folder / name
        stem = os.path.splitext(picture)[0]
        beside = [] if stem in stays else [Path(stem + extension) for extension in extensions]
        for path in (picture, *beside):
            if path.is_symlink():
                raise wrong("pictures", f"{path.name} is a link.", "Remove it by hand.")
            if path.is_file():
                facts = path.stat()
                out[path] = Move(
                    path, _free(found.folder / REMOVED, path.relative_to(found.folder)), facts.st_size, facts.st_mtime_ns
                )
    return list(out.values())


def _free(folder: Path, name: Path) -> Path:
    """`name` in `folder`, with a number where it is taken."""
    target, number = folder / name, 1
    while target.exists():
        number += 1
        target = folder / name.with_name(f"{name.stem} ({number}){name.suffix}")
    return target
