"""A job's folder on a file system that both machines see."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from limner import disk
from limner.targets import contents
from limner.targets.contents import Contents
from limner.targets.job import NotReached


class SharedFiles:
    """The folder itself. Files that are finished are linked, which takes no space, or copied to another file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def look(self) -> Contents | None:
        try:
            return contents.look(self._folder)
        except OSError as error:  # network file systems go and come
            raise NotReached(str(error)) from None

    def read(self, name: str, start: int, end: int) -> bytes:
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(start)
                return file.read(end - start)
        except OSError as error:
            raise NotReached(str(error)) from None

    def bring(self, name: str, to: Path) -> None:
        to.unlink(missing_ok=True)
        try:
            with contextlib.suppress(OSError):
                os.link(self._folder / name, to)
                return
            shutil.copyfile(self._folder / name, to)
        except OSError as error:
            raise NotReached(str(error)) from None

    def ask(self, name: str, text: str) -> None:
        try:
            disk.write_text(self._folder / "control" / name, text)
        except OSError as error:
            raise NotReached(str(error)) from None
