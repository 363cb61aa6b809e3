"""What is known of files by their content: their hashes, and whether they are sound. No torch.

It stands in the index of a cache's folder, and counts as long as a file's size, time and inode are those of the last look.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import filelock

from limner import disk
from limner.errors import wrong

AT_ONCE = 100
"""Rows that are asked for, or written, together: one by one a million files take minutes."""
_PATIENCE_SECONDS = 60


class Contents:
    """The index in a folder. Several processes may read and write it at once.

    With `verify` it takes nothing on trust that it has not read itself, once, since it was opened.
    """

    def __init__(self, folder: Path, *, verify: bool = False, sign: Callable[[], object] = bool) -> None:
        """`sign` is called for each file that is read whole: of a million pictures that takes hours."""
        self.folder, self._verify, self._sign = folder, verify, sign
        self._hashed: set[bytes] = set()
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / "index.lock"):
            self._index = _open_index(folder / "index.sqlite")

    def close(self) -> None:
        self._index.close()

    def content_hash(self, path: str | Path) -> str:
        """SHA-256 of a file; taken from memory as long as size, time and inode are those of the last look."""
        return next(self.content_hashes([path]))

    def content_hashes(self, paths: Iterable[str | Path]) -> Iterator[str]:
        """`content_hash` of each of many files."""
        rest = iter(paths)
        while some := list(islice(rest, AT_ONCE)):
            yield from self._some_hashes(some)

    def _some_hashes(self, paths: Sequence[str | Path], *, may_lack: bool = False) -> list[str]:
        """Raises UserError for a file that cannot be read, or gives "" for it if it `may_lack`."""
        names = [os.fsencode(path) for path in paths]  # a name need not be text
        rows = self._rows("SELECT path, size, time, inode, hash FROM files WHERE path", names)
        out, new = list[str](), list[tuple[bytes, int, int, int, str]]()
        for path, name in zip(paths, names, strict=True):
            try:
                stat = os.stat(path)
                # an inode may have 64 bits where SQLite's numbers have 63
                facts = stat.st_size, stat.st_mtime_ns, stat.st_ino & (1 << 63) - 1
                row = rows.get(name)
                if row is None or row[1:4] != facts or (self._verify and name not in self._hashed):
                    self._sign()
                    row = rows[name] = (name, *facts, disk.sha256(Path(path)))
                    new.append(row)
                    if self._verify:
                        self._hashed.add(name)
            except OSError as error:
                if may_lack:
                    out.append("")
                    continue
                said = f"cannot be read any more ({error.strerror})."
                raise wrong(str(path), said, "Put it back, or resume the run to go on with what is there.") from None
            out.append(row[4])
        if new:
            with self._changing():
                self._index.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", new)
        return out

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """A change of the index, whole or not at all. Raises OSError where there is no space for it."""
        with disk.naming(self.folder / "index.sqlite"), self._index:
            yield

    def _rows(self, question: str, keys: list[Any]) -> dict[Any, Any]:
        """Rows by their first column, which is one of the `keys`."""
        places = ", ".join("?" * len(keys))
        return {row[0]: row for row in self._index.execute(f"{question} IN ({places})", keys)}

    def are_sound(self, paths: Iterable[str], check: Callable[[str], bool]) -> Iterator[bool]:
        """Whether each file is there and passes `check`, which is asked once for each content."""
        rest = iter(paths)
        while some := list(islice(rest, AT_ONCE)):
            hashes = self._some_hashes(some, may_lack=True)
            known = {"": False} | {
                found: bool(row[1]) for found, row in self._rows("SELECT hash, sound FROM sound WHERE hash", hashes).items()
            }
            for path, found in zip(some, hashes, strict=True):
                if found not in known:
                    self._sign()
                    known[found] = check(path)
                    with self._changing():
                        self._index.execute("INSERT OR REPLACE INTO sound VALUES (?, ?)", (found, int(known[found])))
                yield known[found]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time makes the index or mends it: SQLite does not wait for that."""
    try:
        with filelock.FileLock(path, timeout=_PATIENCE_SECONDS):
            yield
    except filelock.Timeout:
        raise wrong("memory.cache_path", f"{path} is held by another program.", "End it, or choose another folder.") from None


def _open_index(path: Path) -> sqlite3.Connection:
    """The index; one that cannot be read is set aside and begun anew, since everything in it can be made again."""
    for attempt in range(2):
        connection = None
        try:
            connection = sqlite3.connect(path, timeout=_PATIENCE_SECONDS)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            if (said := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(said)
            connection.execute(
                "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, size INT, time INT, inode INT, hash TEXT)"
            )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, shard TEXT, names TEXT, checksum INT)"
            )
            connection.execute("CREATE TABLE IF NOT EXISTS sound (hash TEXT PRIMARY KEY, sound INT)")
            return connection
        except sqlite3.DatabaseError as error:
            if connection is not None:
                connection.close()
            if (failed := disk.as_os_error(error, path)) is not None:
                raise failed from error
            if isinstance(error, sqlite3.OperationalError) or attempt:
                said = f"{path} cannot be opened ({error})."
                remedy = "Make room on its disk, choose another folder, or remove the file."
                raise wrong("memory.cache_path", said, remedy) from None
            disk.set_database_aside(path)
    raise AssertionError
