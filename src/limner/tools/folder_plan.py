"""What the folder tools share: pictures with what lies beside them, free names for them, and a plan that is shown, carried out
through the journal, and can be taken back."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import Timeout

from limner import disk, runs
from limner.data.folder_changes import Copy, FolderMove, NewFolder
from limner.data.headers import EXTENSIONS
from limner.data.undo import Change, Journal, Move, Outcome, Write
from limner.errors import Finding, printable, wrong
from limner.tools.tool import Progress, Report

How = Literal["copy", "move", "link"]
KOHYA_NAME = re.compile(r"([0-9]{1,6})_(.*)", re.ASCII | re.DOTALL)
"""A folder's name that sets repeats and caption."""
_SHOWN = 1000
_LONGEST = 255


@dataclass(frozen=True)
class Item:
    """The pictures of one name and what lies beside them under it: captions, masks, cached latents."""

    folder: Path
    stem: str
    pictures: tuple[str, ...]
    beside: tuple[str, ...]


@dataclass
class Plan:
    """What a tool is about to do. `folder` is the one that the journal files it under."""

    folder: Path
    kind: str
    detail: str = ""
    changes: list[Change] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    remarks: list[Finding] = field(default_factory=list)


# --- pictures ---------------------------------------------------------------------------------------------------------


def real_folder(path: Path, option: str) -> Path:
    """The folder that is meant, without links in its path. Raises UserError if there is none."""
    try:
        found = path.resolve()
        if found.is_dir():
            return found
        said = "is a file, not a folder" if found.exists() else "does not exist"
    except (OSError, RuntimeError, ValueError):
        said = "is no path on this system"
    raise wrong(option, f"{path} {said}.", "Give a folder.")


def items(folder: Path, remarks: list[Finding], option: str, *, deep: bool, without: Path | None = None) -> list[Item]:
    """The pictures in a folder, with `deep` in those inside it too but for `without`. Links are not followed, hidden files and
    folders left out; links are named among the remarks."""
    out, links = list[Item](), list[str]()
    for inside, folders, names in disk.walk(folder):
        links += [f"{inside}/{n}" for n in (*folders, *names) if os.path.islink(os.path.join(inside, n))]
        folders[:] = sorted(n for n in folders if deep and not n.startswith(".") and Path(inside, n) != without)
        seen = [n for n in names if not n.startswith(".") and _is_plain(os.path.join(inside, n))]
        out += _sorted_out(Path(inside), sorted(seen))
    if links:
        said = f"{len(links)} links are left where they are, the first is {os.path.relpath(links[0], folder)}."
        remarks.append(Finding(option, said, "Put the files themselves there to have them taken along.", "warning"))
    return out


def _is_plain(path: str) -> bool:
    return os.path.isfile(path) and not os.path.islink(path)


def _sorted_out(folder: Path, names: Sequence[str]) -> Iterator[Item]:
    pictures, beside = dict[str, list[str]](), dict[str, list[str]]()
    for name in names:
        if is_picture(name):
            pictures.setdefault(name[: name.rindex(".")], []).append(name)
    for name in names:
        if not is_picture(name) and (stem := _stem_of(name, pictures)) is not None:
            beside.setdefault(stem, []).append(name)
    for stem, own in pictures.items():
        yield Item(folder, stem, tuple(own), tuple(beside.get(stem, ())))


def is_picture(name: str) -> bool:
    return name[name.rfind(".") :].lower() in EXTENSIONS


def _stem_of(name: str, stems: dict[str, list[str]]) -> str | None:
    """Which picture a file belongs to: of a.png are a.txt, a.npz and a_0512x0512_sdxl.npz."""
    for end in range(len(name) - 1, 0, -1):
        if (name[end] == "." or (name[end] == "_" and name.endswith(".npz"))) and name[:end] in stems:
            return name[:end]
    return None


# --- names ------------------------------------------------------------------------------------------------------------


class Names:
    """Names in the folders that are filled: each is given once, compared as systems do that see no capitals."""

    def __init__(self) -> None:
        self._taken: dict[Path, set[str]] = {}
        self.num_changed = 0

    def place(self, item: Item, folder: Path, option: str) -> dict[str, Path]:
        """For each file of an item where it goes, with a number behind the stem if its name is taken there."""
        taken, stem, number = self._in(folder), item.stem, 1
        names = (*item.pictures, *item.beside)
        while any(_folded(stem + n[len(item.stem) :]) in taken for n in names):
            number += 1
            stem = f"{item.stem} ({number})"
        self.num_changed += number > 1
        given = {n: stem + n[len(item.stem) :] for n in names}
        taken |= {_folded(n) for n in given.values()}
        if long := [n for n in given.values() if len(os.fsencode(n)) > _LONGEST]:
            raise wrong(option, f"{printable(long[0], 60)} is too long a name.", "Give that file a shorter one.")
        return {n: folder / to for n, to in given.items()}

    def folder(self, parent: Path, name: str) -> Path:
        """A name for a new folder, with a number behind it if it is taken."""
        taken, given, number = self._in(parent), name, 1
        while _folded(given) in taken:
            number += 1
            given = f"{name} ({number})"
        taken.add(_folded(given))
        return parent / given

    def _in(self, folder: Path) -> set[str]:
        if folder not in self._taken:
            self._taken[folder] = {_folded(n) for n in os.listdir(folder)} if folder.is_dir() else set()
        return self._taken[folder]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def folder_name(text: str, option: str) -> str:
    """A text as a folder's name. Raises UserError if it cannot be one."""
    bad = sorted({c for c in text if c in '/\\<>:"|?*' or ord(c) < 32})
    if bad or not text.strip() or text != text.strip() or text.endswith("."):
        said = f"{text!r} cannot be a folder's name" + (f", because of {' '.join(map(repr, bad))}." if bad else ".")
        raise wrong(option, said, "Use letters, numbers and spaces.")
    if len(os.fsencode(text)) > _LONGEST:
        raise wrong(option, f"makes a folder's name of {len(os.fsencode(text))} bytes.", "255 is what systems allow.")
    return text


# --- changes ----------------------------------------------------------------------------------------------------------


def transfer(item: Item, places: dict[str, Path], how: How) -> list[Change]:
    """The changes that bring an item's files to their places."""
    out: list[Change] = []
    for name, to in places.items():
        path = item.folder / name
        facts = path.stat()
        if how == "move":
            out.append(Move(path, to, facts.st_size, facts.st_mtime_ns))
        else:
            out.append(Copy(path, to, facts.st_size, facts.st_mtime_ns, how == "link"))
    return out


def new_folders(folders: Iterable[Path], root: Path, option: str) -> list[Change]:
    """The folders that have to be made, parents first. Raises UserError for what lies there and is no folder, or a link: below
    `root`, nothing is written through links."""
    out: dict[Path, NewFolder] = {}
    for folder in folders:
        for path in reversed((folder, *folder.parents)):
            if path.is_relative_to(root) and path != root and path.is_symlink():
                raise wrong(option, f"{path} is a link.", "Remove it, or choose another folder.")
            if os.path.lexists(path) and not path.is_dir():
                raise wrong(option, f"{path} is a file, not a folder.", "Choose another folder.")
            if not os.path.lexists(path):
                out.setdefault(path, NewFolder(path))
    return list(out.values())


def require_room(changes: Sequence[Change], output: Path, option: str) -> None:
    """Raises UserError if files would have to be moved or linked to another disk, or copies do not fit on it."""
    there = next(p for p in (output, *output.parents) if p.exists())
    files = [c for c in changes if isinstance(c, Move | Copy)]
    copies = [c for c in files if isinstance(c, Copy) and not c.is_link]
    if len(copies) < len(files):
        folders = {c.path.parent for c in files}
        if any(folder.stat().st_dev != there.stat().st_dev for folder in folders):
            raise wrong(option, f"{output} is on another disk than the pictures.", 'Set how = "copy".')
    needed, free = sum(c.size for c in copies), disk.free_bytes(output)
    if needed > free:
        said = f"the copies take {needed >> 20} MiB, and {free >> 20} MiB are free in {there}."
        raise wrong(option, said, 'Make room, or set how = "link".')


# --- shown and done ---------------------------------------------------------------------------------------------------


def shown(plan: Plan) -> Report:
    """What a plan would do."""
    return Report(_written(plan.changes), [*plan.lines, *_list(plan)], plan.remarks)


def carried_out(make: Callable[[], Plan], progress: Progress) -> Report:
    """Make a plan and carry it out, while no other tool changes folders. What is broken off half-way the journal knows."""
    with _alone(progress):
        plan = make()
        if not plan.changes:
            return Report((), plan.lines, plan.remarks)
        outcome = journal().apply(plan.folder, plan.kind, plan.detail, plan.changes, lambda _: True, progress)
    left = {path for path, _ in outcome.refused}
    done = [c for c in plan.changes if c.path not in left]
    return Report(_written(done), [*plan.lines, *undo_words(plan.folder)], [*plan.remarks, *refusals(outcome)])


def journal() -> Journal:
    return Journal(runs.home() / "undo")


def undo_words(folder: Path) -> list[str]:
    return [f"To take it back: the tool undo_folders, with folder = {printable(folder, 400)}"]


def refusals(outcome: Outcome) -> list[Finding]:
    """What was left alone, and why."""
    return [Finding(str(path), f"is left as it was: {why}.", "", "warning") for path, why in outcome.refused[:50]]


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _written(changes: Iterable[Change]) -> list[Path]:
    return [c.path if isinstance(c, NewFolder | Write) else c.to for c in changes]


def _list(plan: Plan) -> list[str]:
    out = []
    for change in plan.changes[:_SHOWN]:
        if isinstance(change, NewFolder):
            out.append(f"new folder  {_name(change.path, plan.folder)}")
        elif isinstance(change, Write):
            out.append(f"write       {_name(change.path, plan.folder)}")
        else:
            verb = "rename" if isinstance(change, FolderMove) else "move" if isinstance(change, Move) else _copies(change)
            out.append(f"{verb:11} {_name(change.path, plan.folder)} -> {_name(change.to, plan.folder)}")
    if len(plan.changes) > _SHOWN:
        out.append(f"and {len(plan.changes) - _SHOWN} more")
    return out


def _copies(change: Copy) -> str:
    return "link" if change.is_link else "copy"


def _name(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder) if path.is_relative_to(folder) else path, 400)


@contextmanager
def _alone(progress: Progress) -> Iterator[None]:
    lock = runs.lock("folders", 0.5)
    while True:
        try:
            lock.acquire()
            break
        except Timeout:
            progress(0, 0, "waiting for another tool")
    try:
        yield
    finally:
        lock.release()
