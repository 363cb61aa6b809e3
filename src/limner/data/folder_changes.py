"""Changes of folders that the journal (`data.undo`) can make and take back: a new one, a renamed one, a copied file.

Each has `turn(back)`, which makes the change or takes it back and returns what is in the way, or "". It changes nothing that is
not as the change left it, and finds it done where it is done already, so that what was broken off can be turned either way.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from limner import disk

_CHANGED = "it was changed by somebody else since"
_COARSE_NS = 2_000_000_000
"""How exact times are on the coarsest file system (FAT)."""


@dataclass(frozen=True, slots=True)
class NewFolder:
    """A folder that is made, and removed again if nothing is in it."""

    path: Path

    def turn(self, back: bool) -> str:
        if not back:
            self.path.mkdir(parents=True, exist_ok=True)
        elif self.path.is_dir() and not self.path.is_symlink():
            if any(os.scandir(self.path)):
                return "something else lies in it"
            self.path.rmdir()
        return ""


@dataclass(frozen=True, slots=True)
class FolderMove:
    """A folder that gets another name, on the same disk. `inode` tells it from another of that name."""

    path: Path
    to: Path
    inode: int

    def turn(self, back: bool) -> str:
        source, target = (self.to, self.path) if back else (self.path, self.to)
        if not os.path.lexists(source):
            return "" if _inode(target) == self.inode else "it is not there any more"
        if _inode(source) != self.inode:
            return _CHANGED
        if os.path.lexists(target):
            return "something else has its name"
        os.rename(source, target)
        return ""


@dataclass(frozen=True, slots=True)
class Copy:
    """A file that is copied, or gets a second name (a hard link). `size` and `mtime_ns` are those of both."""

    path: Path
    to: Path
    size: int
    mtime_ns: int
    is_link: bool = False

    def turn(self, back: bool) -> str:
        if back:
            if os.path.lexists(self.to):
                if not self._is_of(self.to):
                    return _CHANGED
                self.to.unlink()
            return ""
        if os.path.lexists(self.to):
            return "" if self._is_of(self.to) else "something else has its name"
        if not self._is_of(self.path):
            return _CHANGED
        self.to.parent.mkdir(parents=True, exist_ok=True)
        if self.is_link:
            os.link(self.path, self.to)
        else:
            with disk.replacing(self.to, durable=False) as temporary:  # the original stays: nothing is lost with a copy
                shutil.copyfile(self.path, temporary)
                os.utime(temporary, ns=(self.mtime_ns, self.mtime_ns))
        return ""

    def _is_of(self, path: Path) -> bool:
        if path.is_symlink() or not path.is_file():
            return False
        facts = path.stat()
        return facts.st_size == self.size and abs(facts.st_mtime_ns - self.mtime_ns) <= _COARSE_NS


def _inode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return None
