"""Which pictures are nearly the same: a perceptual hash of each, kept on the disk, and groups of those whose hashes are near.

The hash is the DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), §3.2.1:
the picture as 32 x 32 greys, the 8 x 8 lowest frequencies of its cosine transform, each compared with their median. Of the
photographs that ship with scikit-image, a JPEG of quality 40, one of half the size, and one a fifth brighter lie within 6
bits of the original but for a few; of two different ones at least 18 bits differ.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from limner import disk
from limner.data.decode import decode
from limner.errors import UserError

NEAR = 8
"""Pictures whose hashes differ in at most this many of 64 bits are nearly the same."""
_NEAR_COLOUR = 48  # of 255, in each channel's mean: plain pictures of different colours have the same hash
_KEPT = 200_000
_TURN = np.arange(32)
_COSINES = np.cos(np.pi / 64 * (2 * _TURN[None, :] + 1) * _TURN[:, None])[:8]


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture looks like: 64 bits and its mean colour (RGB, 0..255)."""

    bits: int
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Group:
    """Pictures that look nearly the same. `copies` are sets of two or more whose files are the same to the byte."""

    paths: list[str]
    copies: list[list[str]]


def look_of(path: str | Path) -> Look:
    """The look of the picture in a file. Raises UserError for one that does not open."""
    picture = decode(path, least=(128, 128))
    colour = np.asarray(picture.resize((1, 1), Image.Resampling.BOX))[0, 0]
    greys = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    # rounded, so that the noise of a plain picture's zeros makes no bits
    low = np.round(_COSINES @ greys @ _COSINES.T, 3).ravel()
    bits = int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")
    return Look(bits, (int(colour[0]), int(colour[1]), int(colour[2])))


def near_groups(looks: Sequence[Look], near: int = NEAR) -> list[list[int]]:
    """Indices of looks that are near one another, directly or through others: groups of two or more, each sorted."""
    if not looks:
        return []
    different = list(dict.fromkeys(looks))
    words = np.array([look.bits for look in different], dtype=">u8").view(np.uint8).reshape(-1, 8)
    signs = np.unpackbits(words, axis=1).astype(np.float32) * 2 - 1
    colours = np.array([look.colour for look in different], dtype=np.int16)
    leader = list(range(len(different)))

    def root(i: int) -> int:
        while leader[i] != i:
            leader[i] = i = leader[leader[i]]
        return i

    for start in range(0, len(different), 512):
        block = signs[start : start + 512]
        # of two vectors of +1 and -1, the product is 64 - 2 x the number of bits that differ
        rows, columns = np.nonzero(block @ signs[start:].T >= 64 - 2 * near)
        later = rows < columns
        rows, columns = rows[later] + start, columns[later] + start
        alike = (np.abs(colours[rows] - colours[columns]) <= _NEAR_COLOUR).all(axis=1)
        for i, j in zip(rows[alike].tolist(), columns[alike].tolist(), strict=True):
            leader[root(j)] = root(i)
    number = {look: i for i, look in enumerate(different)}
    groups: dict[int, list[int]] = {}
    for i, look in enumerate(looks):
        groups.setdefault(root(number[look]), []).append(i)
    return [g for g in groups.values() if len(g) > 1]


class Looks:
    """The looks of files, kept in an SQLite file by path, time and length. It is made, or made anew if it is damaged, when it
    is first asked: then it raises OSError or sqlite3.Error where it cannot be."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def _prepare(self) -> None:
        disk.own_folder(self.file.parent)
        if self.file.is_dir():
            disk.set_aside(self.file)
        try:
            self._make()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            disk.set_aside(self.file)  # damaged; all that was in it can be found again
            self._make()

    def _make(self) -> None:
        with closing(self._open()) as table, table:
            table.execute(
                "CREATE TABLE IF NOT EXISTS looks (path BLOB PRIMARY KEY, mtime_ns INT, size INT, bits BLOB, colour BLOB)"
            )

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.file, timeout=30)

    def known(self, paths: Iterable[str]) -> dict[str, Look]:
        """Those that are kept and whose files are as they were."""
        out = {}
        self._prepare()
        with closing(self._open()) as table:
            for path in paths:
                query = "SELECT mtime_ns, size, bits, colour FROM looks WHERE path = ?"
                row = table.execute(query, (os.fsencode(path),)).fetchone()
                if row is not None and row[:2] == _facts(path):
                    red, green, blue = row[3]
                    out[path] = Look(int.from_bytes(row[2], "big"), (red, green, blue))
        return out

    def keep(self, found: Iterable[tuple[str, tuple[int, int], Look]]) -> None:
        """Keep looks with the (mtime_ns, size) that their files had before they were read; the oldest go at _KEPT."""
        self._prepare()
        rows = [(os.fsencode(p), *facts, k.bits.to_bytes(8, "big"), bytes(k.colour)) for p, facts, k in found]
        with closing(self._open()) as table, table:
            table.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?)", rows)
            table.execute("DELETE FROM looks WHERE rowid <= (SELECT max(rowid) FROM looks) - ?", (_KEPT,))


class Search:
    """A search for pictures that are nearly the same, in threads of its own. Ask `done`, then `groups` and `faults`."""

    def __init__(self, paths: Sequence[str], looks: Looks, workers: int = 2) -> None:
        self.total, self.seen = len(paths), 0
        self.groups: list[Group] = []
        self.faults: dict[str, str] = {}
        self.failed = ""
        """Why the search itself came to nothing, such as a full disk."""
        self.ended = float("inf")
        """When it ended, by `time.monotonic`."""
        self._paths, self._looks, self._workers = paths, looks, workers
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End it early; what was learnt is kept."""
        self._stopped.set()

    def wait(self) -> None:
        """Return once it is done."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._search()
        except (sqlite3.Error, OSError) as error:
            self.failed = str(error)
        finally:
            self.ended = time.monotonic()

    def _search(self) -> None:
        looks = self._looks.known(self._paths)
        self.seen = len(looks)
        missing = [p for p in self._paths if p not in looks]
        with ThreadPoolExecutor(self._workers) as pool:
            for start in range(0, len(missing), 64):
                batch = missing[start : start + 64]
                found = [f for f in pool.map(self._look, batch) if f is not None]
                self.seen += len(batch)
                self._looks.keep(found)
                looks |= {path: look for path, _, look in found}
                if self._stopped.is_set():
                    return
        paths = [p for p in self._paths if p in looks]
        near = near_groups([looks[p] for p in paths])
        self.groups = [Group(members, copies_among(members)) for g in near for members in ([paths[i] for i in g],)]

    def _look(self, path: str) -> tuple[str, tuple[int, int], Look] | None:
        if self._stopped.is_set():
            return None
        facts = _facts(path)
        try:
            return path, facts, look_of(path)
        except UserError as error:
            self.faults[path] = error.findings[0].message
            return None


def copies_among(paths: Iterable[str]) -> list[list[str]]:
    """Sets of two or more files whose contents are the same; only files of equal length are read."""
    by_size: dict[int, list[str]] = {}
    for path in paths:
        by_size.setdefault(_facts(path)[1], []).append(path)
    out: dict[bytes, list[str]] = {}
    for same in by_size.values():
        for path in same if len(same) > 1 else ():
            try:
                with open(path, "rb") as file:
                    out.setdefault(hashlib.file_digest(file, "sha256").digest(), []).append(path)
            except OSError:
                continue  # it went away meanwhile
    return [same for same in out.values() if len(same) > 1]


def _facts(path: str) -> tuple[int, int]:
    """(mtime in ns, size in bytes); (0, -1) for a file that is gone."""
    try:
        facts = os.stat(path)
    except OSError:
        return 0, -1
    return facts.st_mtime_ns, facts.st_size
