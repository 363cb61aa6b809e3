"""Where people at the page may read and write: paths are resolved, and then must lie inside an allowed root.

Symlinks are followed before the comparison, so one that leads out is out. What begins with a dot below a root is out of
bounds too: keys and programs' own files live there, and a root can name such a folder. There is no list of forbidden paths
besides the server's own secret.
"""

from __future__ import annotations

import heapq
import itertools
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from limner import runs
from limner.data.scan import EXTENSIONS
from limner.errors import UserError, wrong
from limner.settings import Settings

CHOOSABLE = (".safetensors", ".ckpt", ".pt", ".onnx", ".json", ".jsonl", ".toml", ".txt", ".tar", ".parquet")
"""Kinds of files that an option may name."""
LIMIT_FOLDERS = 1000
LIMIT_ENTRIES = 200_000
"""A listing looks at no more entries than this; it says so."""
_REMEDY = "Choose one inside an allowed folder, or start `limner web` with --allowed-path FOLDER."


def default_roots(settings: Settings, home: Path, allowed: Iterable[Path], *, private: bool) -> tuple[Path, ...]:
    """The allowed folders, resolved, each once. `private`: only the machine's one user can open the page, so that the folder
    they are in (which may be their home folder) and their home folder are theirs to show. Relative paths are taken from the
    first.
    """
    named = [settings.pictures, settings.models, settings.output, *settings.roots, *allowed, home]
    if private:
        named += [Path.cwd(), Path.home()]
    found = dict.fromkeys(p.expanduser().resolve() for p in named if p is not None)
    return tuple(p for p in found if p != Path(p.anchor) or p in {a.resolve() for a in (*settings.roots, *allowed)})


def leads_inside(path: str, roots: Sequence[Path]) -> bool:
    """Whether a path, links followed, lies inside one of `roots`."""
    try:
        resolve(path, roots, must_exist=False)
    except UserError:
        return False
    return True


def has_other_users() -> bool:
    """Whether other people have accounts on this machine. Windows is taken for a machine of one."""
    if sys.platform == "win32":
        return False
    import pwd

    first = 501 if sys.platform == "darwin" else 1000
    people = {e.pw_uid for e in pwd.getpwall() if first <= e.pw_uid < 60_000 and not e.pw_shell.endswith(("nologin", "false"))}
    return bool(people - {os.getuid()})


def resolve(text: object, roots: Sequence[Path], *, field: str = "path", must_exist: bool = True) -> Path:
    """The real path of what a person typed. Raises UserError at `field` unless it lies inside one of `roots`.

    It is a file or a folder; with `must_exist=False` it may be missing as well.
    """
    path = _typed(text, roots, field)
    try:
        path = path.resolve()
        kind = "folder" if path.is_dir() else "file" if path.is_file() else "other" if path.exists() else "missing"
    except (OSError, RuntimeError, ValueError):
        raise wrong(field, f"{str(text)[:200]!r} cannot be opened.", _REMEDY) from None
    if not is_inside(path, roots):
        raise wrong(field, f"{str(text)[:200]!r} is outside the allowed folders.", _REMEDY)
    if kind == "other":
        raise wrong(field, f"{str(text)[:200]!r} is neither a file nor a folder.", "Choose a file or a folder.")
    if must_exist and kind == "missing":
        raise wrong(field, f"{str(text)[:200]!r} does not exist.", "Look at its spelling, or choose it in the list.")
    return path


def _typed(text: object, roots: Sequence[Path], field: str) -> Path:
    """The absolute path that `text` means, if its spelling is one we take at all."""
    if not isinstance(text, str) or not text:
        raise wrong(field, "is not a path.", "Write one as text.")
    shown = f"{text[:200]!r}"
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise wrong(field, f"{shown} holds characters that no path should.", "Write the path without them.")
    windows = PureWindowsPath(text)
    foreign = os.name != "nt" and (windows.drive or "\\" in text)
    streams = os.name == "nt" and (":" in text.removeprefix(windows.drive) or (windows.root and not windows.drive))
    if foreign or streams or text.startswith(("\\\\", "//")):
        raise wrong(field, f"{shown} is no path of this machine.", _REMEDY)
    parts = text.replace("\\", "/").split("/")
    if ".." in parts:
        raise wrong(field, f"{shown} goes up by '..'.", "Write the path without '..'.")
    if len(text) > 4000 or any(len(p.encode()) > 255 for p in parts):
        raise wrong(field, f"{shown}… is too long.", "Write a shorter path.")
    path = Path.home().joinpath(*parts[1:]) if parts[0] == "~" else Path(text)
    if path.is_absolute():
        return path
    if not roots:
        raise wrong(field, f"{shown} is not a full path.", "Write it in full.")
    return roots[0] / path


def is_inside(path: Path, roots: Iterable[Path]) -> bool:
    """Whether a resolved path lies in one of the (resolved) roots, and not under a name that begins with a dot."""
    if str(path).casefold() == str(runs.home().resolve() / "token").casefold():  # many file systems know no capitals
        return False
    inside = (path.relative_to(root).parts for root in roots if path.is_relative_to(root))
    return any(not any(part.startswith(".") for part in parts) for parts in inside)


def listing(path: str, roots: Sequence[Path]) -> dict[str, Any]:
    """What a folder holds, for choosing something in it: `{path, parent, folders: [{name, path}], files: [...], pictures,
    models, complete}`.

    The empty path lists the roots. Memory does not grow with the folder: at most LIMIT_FOLDERS names are kept.
    """
    if not path:
        folders = [{"name": r.name or str(r), "path": str(r)} for r in roots if r.is_dir()]
        return {"path": None, "parent": None, "folders": folders, "files": [], "pictures": 0, "models": 0, "complete": True}
    here = resolve(path, roots)
    if not here.is_dir():
        raise wrong("path", f"{path!r} is not a folder.", "Choose a folder.")
    counts = {"pictures": 0, "models": 0, "entries": 0, "folders": 0}
    files = list[str]()
    try:
        names = heapq.nsmallest(LIMIT_FOLDERS, _folders(here, roots, counts, files), key=_sorted_so)
    except OSError as error:
        raise wrong("path", f"{path!r} cannot be read: {error.strerror}.", "Choose another folder.") from None
    return {
        "path": str(here),
        "parent": str(here.parent) if is_inside(here.parent, roots) else None,
        "folders": [{"name": name, "path": str(here / name)} for name in names],
        "files": [{"name": name, "path": str(here / name)} for name in sorted(files, key=_sorted_so)],
        "pictures": counts["pictures"],
        "models": counts["models"],
        "complete": counts["entries"] < LIMIT_ENTRIES and counts["folders"] <= LIMIT_FOLDERS,
    }


def _sorted_so(name: str) -> tuple[str, str]:
    return name.casefold(), name


def _folders(here: Path, roots: Sequence[Path], counts: dict[str, int], files: list[str]) -> Iterator[str]:
    """The names of the folders in `here` that may be entered; on the way counts what else is there, and notes the first
    LIMIT_FOLDERS files that an option may name.
    """
    with os.scandir(here) as entries:
        for entry in itertools.islice(entries, LIMIT_ENTRIES):
            counts["entries"] += 1
            name = entry.name
            suffix = os.path.splitext(name)[1].lower()
            counts["pictures"] += suffix in EXTENSIONS
            counts["models"] += suffix == ".safetensors"
            if name.startswith(".") or not can_be_named(name):
                continue
            if suffix in CHOOSABLE and len(files) < LIMIT_FOLDERS:
                files.append(name)
            if _can_be_entered(entry, roots):
                counts["folders"] += 1
                yield name


def can_be_named(name: str) -> bool:
    """Names that are not UTF-8 cannot travel to the page and back."""
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in name) and (os.name == "nt" or "\\" not in name)


def _can_be_entered(entry: os.DirEntry[str], roots: Sequence[Path]) -> bool:
    try:
        return entry.is_dir() if not entry.is_symlink() else resolve(entry.path, roots).is_dir()
    except (OSError, UserError):
        return False
