"""What the headers and captions of a large folder said at the last look, so that the next start need not open its files.

A file of Limner's home for each folder; what it says of a picture holds as long as size, time and inode of the picture and its
caption are the same. It may
be lost or damaged at any time: then the files are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from limner import disk, runs

MANY = 2000
"""Pictures in a folder from which on it is worth while."""
_VERSION = 1
_SETTLED_SECONDS = 3
"""A file younger than this may still change without its time showing it."""

Look = tuple[int, int, str | None]
"""A picture's width and height, and the text of its caption file; None if it has none."""


class Remembered:
    """One folder's. `options` are what else it depends on."""

    def __init__(self, folder: str, *options: Any) -> None:
        said = json.dumps([_VERSION, os.path.abspath(folder), *options])
        self._path = runs.home() / "cache" / "folders" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"
        self._old = _read(self._path)
        self._new: dict[str, str] = {}
        self._has_changed = False

    def recall(self, name: str, picture: str, caption: str) -> Look | None:
        """What was seen of a picture, if its files (paths; "" for no caption) are those of the last look. Raises OSError."""
        row = self._old.get(name)
        if row is None:
            return None
        own, beside, width, height, text = row.split("\t", 4)
        if own != _facts(picture) or beside != (_facts(caption) if caption else ""):
            return None
        self._new[name] = row
        return int(width), int(height), text if beside else None

    def keep(self, name: str, picture: str, caption: str, seen: Look) -> None:
        """Remember what was seen."""
        own, beside = os.stat(picture), os.stat(caption) if caption else None
        if max(own.st_mtime, beside.st_mtime if beside else 0) < time.time() - _SETTLED_SECONDS:
            told = _facts_of(beside) if beside else ""
            self._new[name] = f"{_facts_of(own)}\t{told}\t{seen[0]}\t{seen[1]}\t{seen[2] or ''}"
            self._has_changed = True

    def save(self) -> None:
        """Write down this look, if it differs from the last."""
        if self._has_changed or len(self._new) != len(self._old):
            with contextlib.suppress(OSError), disk.replacing(self._path, durable=False) as temporary:
                temporary.write_text(json.dumps(self._new, separators=(",", ":")), encoding="ascii")


def _facts(path: str) -> str:
    return _facts_of(os.stat(path))


def _facts_of(stat: os.stat_result) -> str:
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    is_sound = isinstance(found, dict) and all(isinstance(r, str) and r.count("\t") >= 4 for r in found.values())
    return found if is_sound else {}
