"""Encoded pictures and captions on disk: sharded safetensors files with an index, keyed by content and options.

An entry's key is a hash of everything that shapes it, so a changed caption, picture, VAE, bucket or version is simply
another key: nothing stale can be found. Entries carry a checksum; a damaged one is encoded again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import filelock
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limner import disk
from limner.errors import wrong

_VERSION = 2  # raise it when encoding changes
_RESIDENT_BYTES = 512 << 20
_PATIENCE_SECONDS = 60
_AT_ONCE = 100
"""Rows that are asked for, or written, together: one by one a million files take minutes."""
_JSON = json.JSONEncoder(sort_keys=True, default=str)

Entry = dict[str, Tensor]


def key_of(*parts: Any) -> str:
    """A hash of everything that shapes an entry."""
    return key_of_texts(*map(as_text, parts))


def as_text(part: Any) -> str:
    """What a key is made of, of one part: to be kept where very many keys share it."""
    return _JSON.encode(part)


def key_of_texts(*texts: str) -> str:
    """`key_of` parts given as text."""
    return hashlib.sha256(f"[{', '.join((str(_VERSION), *texts))}]".encode()).hexdigest()


class Cache:
    """A folder of encoded samples. Several processes may read and write it at once.

    With `verify` it takes nothing on trust that it has not read itself, once, since it was opened.
    """

    def __init__(self, folder: Path, *, verify: bool = False, sign: Callable[[], object] = bool) -> None:
        """`sign` is called for each file that is read whole: of a million pictures that takes hours."""
        self.folder, self._verify, self._sign = folder, verify, sign
        self._hashed: set[bytes] = set()
        self._checked: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / "index.lock"):
            self._index = _open_index(folder / "index.sqlite")
        self._resident: OrderedDict[str, Entry] = OrderedDict()
        self._resident_bytes = 0

    def close(self) -> None:
        self._index.close()

    # --- file contents ---

    def content_hash(self, path: str | Path) -> str:
        """SHA-256 of a file; taken from memory as long as size, time and inode are those of the last look."""
        return next(self.content_hashes([path]))

    def content_hashes(self, paths: Iterable[str | Path]) -> Iterator[str]:
        """`content_hash` of each of many files."""
        rest = iter(paths)
        while some := list(islice(rest, _AT_ONCE)):
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
        while some := list(islice(rest, _AT_ONCE)):
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

    # --- entries ---

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys, each once, that have no entry; those whose shard is gone or empty count as missing, as damaged ones do."""
        with os.scandir(self.folder) as files:
            shards = {f.name for f in files if f.name.endswith(".safetensors") and f.stat().st_size}
        out: dict[str, None] = {}
        rest = iter(keys)
        while some := list(islice(rest, _AT_ONCE)):
            rows = self._rows("SELECT key, shard FROM entries WHERE key", some)
            for key in some:
                if key not in rows or rows[key][1] not in shards or (self._verify and not self._holds(key)):
                    out[key] = None
        return list(out)

    def _holds(self, key: str) -> bool:
        """Whether an entry is what was put in; read once."""
        if key not in self._checked and self.get(key) is not None:
            self._checked.add(key)
        return key in self._checked

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Add entries as one shard: the file first, whole, then the index."""
        if not entries:
            return
        shard = f"{hashlib.sha256(''.join(entries).encode()).hexdigest()[:20]}.safetensors"
        tensors = {f"{key}.{name}": t.detach().cpu().contiguous() for key, e in entries.items() for name, t in e.items()}
        # not waiting for the disk, which may take longer than encoding: what a power cut spoils is made again
        with disk.replacing(self.folder / shard, durable=False) as temporary:
            save_file(tensors, temporary)
        rows = [(key, shard, json.dumps(sorted(e)), _checksum(e)) for key, e in entries.items()]
        with self._changing():
            self._index.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", rows)

    def get(self, key: str) -> Entry | None:
        """An entry's tensors on the CPU, or None if it is missing or damaged (then it is forgotten, to be made again)."""
        if key in self._resident:
            self._resident.move_to_end(key)
            return self._resident[key]
        row = self._index.execute("SELECT shard, names, checksum FROM entries WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        try:
            with safe_open(self.folder / row[0], framework="pt") as file:
                # copies: the file is mapped, and may be replaced under our feet
                entry = {name: file.get_tensor(f"{key}.{name}").clone() for name in json.loads(row[1])}
        except (OSError, SafetensorError):
            entry = None
        if entry is None or _checksum(entry) != row[2]:
            with self._changing():
                self._index.execute("DELETE FROM entries WHERE key = ?", (key,))
            return None
        self._keep(key, entry)
        return entry

    def _keep(self, key: str, entry: Entry) -> None:
        self._resident[key] = entry
        self._resident_bytes += _size(entry)
        while self._resident_bytes > _RESIDENT_BYTES and len(self._resident) > 1:
            self._resident_bytes -= _size(self._resident.popitem(last=False)[1])


def _size(entry: Entry) -> int:
    return sum(t.nbytes for t in entry.values())


def _checksum(entry: Entry) -> int:
    value = 0
    for name in sorted(entry):
        tensor = entry[name].detach().cpu().contiguous()
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value


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
