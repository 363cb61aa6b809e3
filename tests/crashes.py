"""The states in which a power cut may leave a folder, from what real code did in it.

`record` notes what a piece of work does below a folder: names that come, go and change, contents that are written, and what
is pushed to the disk. `states` then makes, for every moment of it, the folders that a disk may hold after a power cut there:

* of names (made, renamed, deleted) in a folder that was not synced since, any subset is there; one rename is there or not;
* a file that was not synced since is as it was when it last was, empty, half written, or as long as it is but full of zeros;
  of what was appended the same holds for the new part.

Below a temporary name, which recovery deletes unread, there is only a choice of them: all names, none, and of a few each one
missing; all contents of one kind.
Whether a file is written by Python or not makes no difference: contents are compared before and after each call.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from limner.disk import TEMPORARY

CALLS = ("replace", "rename", "link", "mkdir", "unlink", "remove", "rmdir", "fsync")
"""All of `os` that changes names, or pushes something to the disk."""
MOST_NAMES = 8
"""Names of one folder that may wait for the disk at a time: there are 2 to the power of it subsets."""


@dataclass(frozen=True)
class Named:
    """Names of one folder that came to stand for other things, all at once; None is for a name that is gone."""

    folder: int
    names: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Written:
    file: int
    content: bytes


@dataclass(frozen=True)
class Synced:
    thing: int


Folder = dict[str, int]
Things = dict[int, Folder | bytes]
"""By number: a folder's names, or a file's content. 0 is the folder that was looked at."""
Tree = Mapping[str, bytes | None]
"""What is on a disk, by path; None is a folder."""


Deed = Named | Written | Synced


@dataclass
class Record:
    root: Path
    before: Things = field(default_factory=dict)
    did: list[Deed] = field(default_factory=list)
    folders: set[int] = field(default_factory=set)
    """The numbers of all that are, or were, folders."""
    _numbers: dict[int, int] = field(default_factory=dict)
    """By inode."""
    _next: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _now: Things = field(default_factory=dict)

    def begin(self) -> None:
        self._now = self._look()
        self.before = dict(self._now)

    def note(self, *, is_one: bool) -> None:
        """Note what changed since the last look; `is_one` if by a single call, which happened or did not."""
        earlier, self._now = self._now, self._look()
        named, written = list[Named](), list[Written]()
        for number, thing in self._now.items():
            was = earlier.get(number)
            if isinstance(thing, bytes):
                if thing != (was or b""):
                    written.append(Written(number, thing))
                continue
            was = was if isinstance(was, dict) else {}
            changed = [(name, thing.get(name)) for name in sorted({*was, *thing}) if was.get(name) != thing.get(name)]
            if changed:
                named += [Named(number, tuple(changed))] if is_one else [Named(number, (one,)) for one in changed]
        assert not is_one or len(named) <= 1, "a rename from one folder to another is not reckoned with"
        self.did += [*named, *written]

    def synced(self, handle: int) -> None:
        number = self._numbers.get(os.fstat(handle).st_ino)
        if number is not None:
            self.did.append(Synced(number))

    def _look(self) -> Things:
        found, here = Things(), dict[int, int]()

        def number(path: Path) -> int:
            inode = path.stat().st_ino
            if inode not in here:  # one that was not there at the last look is new, though its inode may have been used before
                here[inode] = self._numbers[inode] if inode in self._numbers else next(self._next)
            return here[inode]

        def look(path: Path, own: int) -> None:
            names = found[own] = Folder()
            self.folders.add(own)
            for child in path.iterdir():
                names[child.name] = number(child)
                if child.is_dir():
                    look(child, names[child.name])
                else:
                    found[names[child.name]] = child.read_bytes()

        here[self.root.stat().st_ino] = 0
        look(self.root, 0)
        self._numbers = here
        return found


def record(root: Path, work: Callable[[], Any]) -> Record:
    """What `work` does below `root`. All that is there before is on the disk."""
    made = Record(root)
    made.begin()

    def noting(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **others: Any) -> Any:
            made.note(is_one=False)
            if name == "fsync":
                made.synced(args[0])
            out = real(*args, **others)
            made.note(is_one=True)
            return out

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, noting(name))
        work()
    made.note(is_one=False)
    return made


def states(made: Record) -> Iterator[tuple[bool, Tree]]:
    """(whether the work was done by then, what a power cut may leave), each once."""
    seen = set[tuple[bool, frozenset[tuple[str, bytes | None]]]]()
    for count in range(len(made.did) + 1):
        is_done = count == len(made.did)
        for tree in _after(made, made.did[:count]):
            key = is_done, frozenset(tree.items())
            if key not in seen:
                seen.add(key)
                yield is_done, tree


def _after(made: Record, did: list[Deed]) -> Iterator[Tree]:
    """The trees after these, be they on the disk or on their way."""
    last = {one.thing: i for i, one in enumerate(did) if isinstance(one, Synced)}
    waiting = {i: one for i, one in enumerate(did) if isinstance(one, Named) and i > last.get(one.folder, -1)}
    hidden = _hidden_folders(made.before, did, waiting)
    below = {i for i, one in waiting.items() if one.folder in hidden}
    shown = sorted(waiting.keys() - below)
    assert len(shown) <= MOST_NAMES, "too many names at once"
    choices = _choices(made.before, did, last)
    for chosen in _subsets(shown):
        is_whole = len(chosen) == len(shown)
        for some in [below, set[int](), *_each_missing(below)] if is_whole else [below]:
            lost = waiting.keys() - chosen - some
            folders = {n: dict(thing) for n, thing in made.before.items() if isinstance(thing, dict)}
            for i, one in enumerate(did):
                if isinstance(one, Named) and i not in lost:
                    names = folders.setdefault(one.folder, {})
                    for name, thing in one.names:
                        if thing is None:
                            names.pop(name, None)
                        else:
                            names[name] = thing
            yield from _contents({n: folders.get(n, {}) for n in made.folders}, choices)


def _subsets(items: list[int]) -> Iterator[set[int]]:
    for size in range(len(items) + 1):
        yield from map(set, itertools.combinations(items, size))


def _each_missing(items: set[int]) -> list[set[int]]:
    return [items - {one} for one in items] if len(items) <= MOST_NAMES else []


def _hidden_folders(before: Things, did: list[Deed], waiting: Mapping[int, Named]) -> set[int]:
    """The folders that can be nowhere but below a temporary name now."""
    meant = {(n, name): {child} for n, thing in before.items() if isinstance(thing, dict) for name, child in thing.items()}
    for i, one in enumerate(did):
        for name, child in one.names if isinstance(one, Named) else ():
            earlier = meant.get((one.folder, name), set()) if i in waiting else set()
            meant[one.folder, name] = earlier | ({child} if child is not None else set())
    parents = dict[int, set[tuple[int, str]]]()
    for place, children in meant.items():
        for child in children:
            parents.setdefault(child, set()).add(place)

    def is_hidden(number: int) -> bool:
        return number != 0 and all(name.startswith(TEMPORARY) or is_hidden(above) for above, name in parents.get(number, ()))

    return {number for number in parents if is_hidden(number)}


def _choices(before: Things, did: list[Deed], last: Mapping[int, int]) -> dict[int, list[bytes]]:
    """What each file may hold: what was written last comes first, what is on the disk for certain comes last."""
    out = {n: [thing] for n, thing in before.items() if isinstance(thing, bytes)}
    for i, one in enumerate(did):
        if not isinstance(one, Written):
            continue
        if i < last.get(one.file, -1):
            out[one.file] = [one.content]
            continue
        earlier = out.get(one.file, [b""])
        kept = earlier[-1] if one.content.startswith(earlier[-1]) else b""
        new = one.content[len(kept) :]
        found = dict.fromkeys([one.content, *_damaged(kept, new), *earlier[:-1]])
        out[one.file] = [*(content for content in found if content != earlier[-1]), earlier[-1]]
    return out


@cache
def _damaged(kept: bytes, new: bytes) -> tuple[bytes, bytes]:
    """Half of what is new, and zeros in its place."""
    return kept + new[: len(new) // 2], kept + bytes(len(new))


def _contents(folders: Mapping[int, Folder], choices: Mapping[int, list[bytes]]) -> Iterator[Tree]:
    """The trees of these folders with all that may be in their files."""
    files, bare = dict[str, list[bytes]](), dict[str, bytes | None]()

    def walk(number: int, path: str) -> None:
        for name, child in folders[number].items():
            if child in folders:
                bare[path + name] = None
                walk(child, f"{path}{name}/")
            else:
                files[path + name] = choices.get(child, [b""])

    walk(0, "")
    hidden = {path: all_ for path, all_ in files.items() if any(part.startswith(TEMPORARY) for part in path.split("/"))}
    shown = [path for path in files if path not in hidden]
    for contents in itertools.product(*(files[path] for path in shown)):
        for number in range(max(map(len, hidden.values()), default=1)):
            below = {path: all_[min(number, len(all_) - 1)] for path, all_ in hidden.items()}
            yield {**bare, **dict(zip(shown, contents, strict=True)), **below}


class Disk:
    """Makes such trees below a folder; each content is written once, and linked."""

    def __init__(self, folder: Path) -> None:
        self._pool, self._root = folder / "pool", folder / "tree"
        self._pool.mkdir(parents=True)
        self._kept = dict[bytes, Path]()

    def make(self, tree: Tree) -> Path:
        """A folder that holds this, in place of the one before. Nobody may write into its files."""
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir()
        for path, content in tree.items():
            if content is None:
                (self._root / path).mkdir()  # a folder comes before what is in it
        for path, content in tree.items():
            if content is None:
                continue
            if content not in self._kept:
                self._kept[content] = self._pool / str(len(self._kept))
                self._kept[content].write_bytes(content)
            os.link(self._kept[content], self._root / path)
        return self._root
