"""What is wrong with Limner's home itself: put right as far as that destroys nothing, and told.

Files that are damaged are renamed where they are used (`disk.set_aside`), by whichever process meets them first. What was is
read from the folders, as everything is: each such name tells of it for a day.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from pathlib import Path

from limner import disk, queue
from limner.errors import Finding, UserError, printable

FOLDERS = (
    "cache", "estimates", "imported", "jobs", "locks", "models", "pictures", "presets", "runs", "tools", "trash", "undo",
)  # fmt: skip
_TOLD_SECONDS = 24 * 3600.0
_MOST = 20
_KEPT = "Mend it and give it its name back, or delete it."


def mend(home: Path) -> None:
    """Set aside what lies in the place of the home's folders. What cannot be is left, for `findings` to tell."""
    for name in FOLDERS:
        path = home / name
        if os.path.lexists(path) and not path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                disk.set_aside(path)


def findings(home: Path) -> list[Finding]:
    """What people should know of the home, the gravest first. A damaged queue is made anew, as by all who look at it."""
    found = [*_of_home(home), *_of_folders(home), *_of_queue(home)]
    return [*found, *_set_aside(home)][:_MOST]


def _of_home(home: Path) -> Iterator[Finding]:
    shown = printable(home)
    if home.is_dir():
        if not os.access(home, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            said = f"{shown} cannot be written: no run can be started, and no settings are kept."
            yield _warning("LIMNER_HOME", said, "Make it writable, or choose another folder.")
    elif home.is_symlink():
        said = f"{shown} is a link to {printable(os.readlink(home))}, which is not there."
        yield _warning("LIMNER_HOME", said, "Connect the disk that it is on, or mend the link.")
    elif os.path.lexists(home):
        yield _warning("LIMNER_HOME", f"{shown} is not a folder.", "Rename it, or choose another folder.")


def _of_folders(home: Path) -> Iterator[Finding]:
    for name in FOLDERS:
        path = home / name
        if path.is_symlink() and not path.is_dir():
            yield _warning(
                name, "is a link to a folder that is not there.", "Connect the disk that it is on, or mend the link."
            )
    folder = home / "runs"
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):
            if os.path.isfile(folder / name / "state.json") and not os.path.isfile(folder / name / "config.toml"):
                said = "has no config.toml, so that it is not among the runs."
                yield _warning(f"runs/{printable(name, 60)}", said, "Put the file back, or delete the folder.")


def _of_queue(home: Path) -> Iterator[Finding]:
    if not (home / "queue.sqlite").exists():
        return
    try:
        queue.waiting()
    except UserError as error:
        yield from (_warning(f.field, f.message, f.remedy) for f in error.findings)
    except OSError as error:
        yield _warning("queue.sqlite", f"cannot be used: {error.strerror or error}.", "Free some space on its disk.")


def _set_aside(home: Path) -> Iterator[Finding]:
    """What was renamed in the home, in its locks and in the runs' folders."""
    places = [home, home / "locks", home / "cache"]
    for folder in ("runs", "tools"):
        with contextlib.suppress(OSError):
            places += [home / folder / name for name in sorted(os.listdir(home / folder))]
    for place in places:
        with contextlib.suppress(OSError):
            for path in sorted(place.glob(f"*{disk.ASIDE}*")):
                if _is_recent(path.name):
                    name = (place / path.name.partition(disk.ASIDE)[0]).relative_to(home)
                    said = f"was damaged; it is kept as {printable(path.name)}, and a new one has taken its place."
                    yield _warning(printable(name), said, _KEPT)


def _is_recent(name: str) -> bool:
    """Whether a name says that it was set aside within a day."""
    with contextlib.suppress(ValueError):
        return abs((datetime.datetime.now() - disk.when_set_aside(name)).total_seconds()) < _TOLD_SECONDS
    return False


def _warning(field: str, message: str, remedy: str) -> Finding:
    return Finding(field, message, remedy, "warning")
