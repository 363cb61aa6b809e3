"""A journal of what was written into people's folders, so that it can be taken back and done again, also after a restart.

One entry is one operation over many files, in `<home>/undo/<number>/`: `files.json` says what each file held before and
holds after, `entry.json` (written last) what it was called. It is written before the first file is touched; a file that is
found neither as before nor as after was changed by somebody else and is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from limner import disk
from limner.data.folder_changes import Copy, FolderMove, NewFolder
from limner.errors import wrong

MAX_ENTRIES = 100
MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Write:
    """A text file's whole content before and after; None: there is no such file."""

    path: Path
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Move:
    """A file that gets another name, on the same disk. `size` and `mtime_ns` tell it from another of that name."""

    path: Path
    to: Path
    size: int
    mtime_ns: int


Change = Write | Move | NewFolder | FolderMove | Copy

Progress = Callable[[int, int], None]
"""Told how many of how many changes are made. What it raises breaks them off; the journal knows them all the same."""


@dataclass(frozen=True)
class Entry:
    """One operation in the journal. `folder` is the folder that it was about; `kind` and `detail` say what it did.

    `unfinished` is what an operation is known by that is still to be gone on with; "" for one that was done to its end.
    """

    number: int
    folder: str
    kind: str
    detail: str
    files: int
    undone: bool = False
    unfinished: str = ""


@dataclass(frozen=True)
class Outcome:
    """How many files were changed, and which were left alone since they are no longer as they were: (path, why)."""

    entry: Entry
    changed: int
    refused: list[tuple[Path, str]]


class Journal:
    """The journal in one folder. Several threads and processes may use it at once."""

    def __init__(self, folder: Path, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self.folder, self.max_entries, self.max_bytes = folder, max_entries, max_bytes

    def apply(
        self, folder: Path, kind: str, detail: str, changes: Sequence[Change], allowed: Callable[[Path], bool],
        progress: Progress | None = None, unfinished: str = "",
    ) -> Outcome:  # fmt: skip
        """Make the changes of files for which `allowed` is true, journalled as one.

        Raises UserError, with nothing done, if they are none, or too much to be kept.
        """
        if not changes:
            raise wrong("pictures", "nothing would change.", "Choose other pictures, or another edit.")
        content = self.record(changes)
        with self._lock():
            begun = Entry(0, str(folder), kind, detail, len(changes), False, unfinished)
            return self._begin(begun, changes, content, allowed, progress)

    def add(self, entry: Entry, changes: Sequence[Change], allowed: Callable[[Path], bool]) -> Outcome:
        """Make more changes as part of an operation that is the last in its folder, so that one undo takes all of it back.

        If it no longer is, or would become too large, they are an operation of their own.
        """
        content = self.record(changes)
        with self._lock():
            last, undone = self.next(Path(entry.folder))
            earlier = self._content(entry) if last is not None and last.number == entry.number and undone is None else None
            whole = None if earlier is None else json.dumps([*earlier, *map(_dumped, changes)])
            if last is None or whole is None or len(whole) > self.max_bytes:
                return self._begin(replace(entry, files=len(changes), undone=False), changes, content, allowed, None)
            disk.write_text(self._place(entry.number) / "files.json", whole)
            entry = replace(last, files=last.files + len(changes))
            self._write(entry)
            self._prune()
            return self._do(entry, changes, allowed, None, back=False)

    def unfinished(self, folder: Path, name: str) -> tuple[Entry | None, set[Path]]:
        """The last part of the unfinished operation of this name on the folder, and the files that it has changed."""
        found = [e for e in self.entries(folder) if e.unfinished == name and not e.undone and Path(e.folder) == folder]
        files = {_loaded(c).path for e in found for c in self._content(e) or ()}
        return (found[-1] if found else None), files

    def finish(self, folder: Path, name: str) -> None:
        """The unfinished operation of this name has been done to its end."""
        with self._lock():
            for entry in self.entries(folder):
                if entry.unfinished == name:
                    self._write(replace(entry, unfinished=""))

    def _begin(
        self, entry: Entry, changes: Sequence[Change], content: str, allowed: Callable[[Path], bool], progress: Progress | None
    ) -> Outcome:
        for other in self.entries(Path(entry.folder)):
            if other.undone:  # what was undone and then written over cannot be done again
                self._drop(other.number)
        entry = replace(entry, number=max((e.number for e in self.entries()), default=0) + 1)
        place = self._place(entry.number)
        shutil.rmtree(place, ignore_errors=True)  # what a killed writer left
        disk.write_text(place / "files.json", content)
        self._write(entry)
        self._prune()
        return self._do(entry, changes, allowed, progress, back=False)

    def _content(self, entry: Entry) -> list[dict[str, Any]] | None:
        """What the operation did to each file; None if the record is damaged."""
        content = disk.read_json(self._place(entry.number) / "files.json", limit=self.max_bytes + 1, is_ours=True)
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            return content if isinstance(content, list) and [*map(_loaded, content)] else None
        return None

    def record(self, changes: Sequence[Change]) -> str:
        """What `apply` keeps of the changes. Raises UserError if it is too much."""
        content = json.dumps([_dumped(c) for c in changes])
        if len(content) > self.max_bytes:
            said = f"changes {len(content) >> 20} MiB of captions and names at once, too much to be undone."
            raise wrong("pictures", said, "Choose fewer pictures.")
        return content

    def undo(self, folder: Path, allowed: Callable[[Path], bool], progress: Progress | None = None) -> Outcome | None:
        """Take back the last operation in `folder` that stands, but only in files for which `allowed` is true.

        None if there is none.
        """
        return self._turn(folder, allowed, progress, back=True)

    def redo(self, folder: Path, allowed: Callable[[Path], bool], progress: Progress | None = None) -> Outcome | None:
        """Do again what was undone last; None if there is nothing."""
        return self._turn(folder, allowed, progress, back=False)

    def next(self, folder: Path) -> tuple[Entry | None, Entry | None]:
        """(what `undo` would take back, what `redo` would do again)."""
        entries = self.entries(folder)
        return (
            next((e for e in reversed(entries) if not e.undone), None),
            next((e for e in entries if e.undone), None),
        )

    def entries(self, folder: Path | None = None) -> list[Entry]:
        """All operations, or those on one folder and on folders inside it, oldest first. Damaged ones are left out."""
        out = []
        for name in os.listdir(self.folder) if self.folder.is_dir() else ():
            content = disk.read_json(self.folder / name / "entry.json", is_ours=True)
            with contextlib.suppress(TypeError, ValueError):
                entry = Entry(int(name), **content)
                texts = (entry.folder, entry.kind, entry.detail, entry.unfinished)
                if all(isinstance(text, str) for text in texts) and isinstance(entry.files, int):
                    out.append(entry)
        return sorted((e for e in out if folder is None or Path(e.folder).is_relative_to(folder)), key=lambda e: e.number)

    def _turn(self, folder: Path, allowed: Callable[[Path], bool], progress: Progress | None, *, back: bool) -> Outcome | None:
        with self._lock():
            entry = self.next(folder)[0 if back else 1]
            if entry is None:
                return None
            content = self._content(entry)
            if content is None:
                self._drop(entry.number)
                raise wrong("undo", f"the record of {entry.kind!r} in the journal is damaged.", "It was removed; try again.")
            outcome = self._do(entry, [_loaded(c) for c in content], allowed, progress, back=back)
            # also if every file was refused: the operations before it must stay within reach
            entry = replace(entry, undone=back)
            self._write(entry)
            return replace(outcome, entry=entry)

    def _do(
        self, entry: Entry, changes: Sequence[Change], allowed: Callable[[Path], bool], progress: Progress | None, *, back: bool
    ) -> Outcome:
        refused, changed, is_full = [], 0, False
        try:
            for i, change in enumerate(reversed(changes) if back else changes):
                if progress is not None:
                    progress(i, len(changes))
                try:
                    fault = "" if all(map(allowed, _elsewhere(change, Path(entry.folder)))) else _BARRED
                    fault = fault or (os.strerror(errno.ENOSPC) if is_full else _turned(change, back))
                except OSError as error:
                    fault, is_full = error.strerror or type(error).__name__, error.errno == errno.ENOSPC
                if fault:
                    refused.append((change.path, fault))
                else:
                    changed += 1
        finally:
            _sync(changes)
        return Outcome(entry, changed, refused)

    def _prune(self) -> None:
        entries, sizes = [], dict[int, int]()
        for entry in self.entries():
            try:
                sizes[entry.number] = (self._place(entry.number) / "files.json").stat().st_size
                entries.append(entry)
            except FileNotFoundError:
                self._drop(entry.number)  # somebody removed what it could be undone with
        total = sum(sizes.values())
        for i, entry in enumerate(entries[:-1]):
            if len(entries) - i <= self.max_entries and total <= self.max_bytes:
                return
            self._drop(entry.number)
            total -= sizes[entry.number]

    def _place(self, number: int) -> Path:
        return self.folder / f"{number:08d}"

    def _write(self, entry: Entry) -> None:
        content = {k: v for k, v in asdict(entry).items() if k != "number"}
        disk.write_text(self._place(entry.number) / "entry.json", json.dumps(content))  # ASCII: names may be no UTF-8

    def _drop(self, number: int) -> None:
        (self._place(number) / "entry.json").unlink(missing_ok=True)  # first, so that no half entry is ever seen
        shutil.rmtree(self._place(number), ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            yield


_CHANGED = "it was changed by somebody else since"
_BARRED = "it is not in the allowed folders"


def _sync(changes: Sequence[Change]) -> None:
    """Push renames to the disk: once for each folder, since one by one takes milliseconds."""
    for folder in {path.parent for c in changes if isinstance(c, Move | FolderMove) for path in (c.path, c.to)}:
        with contextlib.suppress(OSError):
            disk.fsync(folder)


def _elsewhere(change: Change, folder: Path) -> list[Path]:
    """The files of a change that have to be allowed; what the operation put into its own folder is."""
    if isinstance(change, Write | NewFolder) or change.to.is_relative_to(folder):
        return [change.path]
    return [change.path, change.to]


def _turned(change: Change, back: bool) -> str:
    if isinstance(change, Write):
        return _write_file(change, back)
    return _move_file(change, back) if isinstance(change, Move) else change.turn(back)


def _write_file(change: Write, back: bool) -> str:
    """Bring a file from one content to the other; what is wrong, or ""."""
    source, target = (change.after, change.before) if back else (change.before, change.after)
    try:
        now = change.path.read_bytes()
    except FileNotFoundError:
        now = None
    if now == _encoded(target):
        return ""
    if now != _encoded(source):
        return _CHANGED
    if target is None:
        change.path.unlink()
    else:
        disk.write_text(change.path, target)
    return ""


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8")


def _move_file(change: Move, back: bool) -> str:
    source, target = (change.to, change.path) if back else (change.path, change.to)
    if not source.is_file():
        return "" if _is_same(target, change) else "it is not there any more"
    if not _is_same(source, change):
        return _CHANGED
    if target.exists():
        return "another file has its name"
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(source, target)
    return ""


def _is_same(path: Path, change: Move) -> bool:
    return path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns) == (change.size, change.mtime_ns)


def _dumped(change: Change) -> dict[str, Any]:
    values = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(change).items()}
    return values if isinstance(change, Write | Move) else {"kind": type(change).__name__, **values}


def _loaded(content: dict[str, Any]) -> Change:
    values: dict[str, Any] = {name: Path(v) if name in ("path", "to") else v for name, v in content.items() if name != "kind"}
    kinds = {kind.__name__: kind for kind in (NewFolder, FolderMove, Copy)}
    if "kind" in content:
        return kinds[content["kind"]](**values)
    if "to" in values:
        return Move(**values)
    if not all(isinstance(values[name], str | None) for name in ("before", "after")):
        raise TypeError("no text")
    return Write(**values)
