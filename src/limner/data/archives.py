"""Tar and parquet files as data sets: each is unpacked once into a folder of Limner's home, which is scanned as any other.

The folder is called after the files' sizes, times and ends and the options that matter, so that a changed archive is unpacked
anew, and an unchanged one never again. It appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from limner import disk, runs
from limner.config import Config, Data
from limner.data import parquet, subsets, tars
from limner.data.headers import EXTENSIONS
from limner.data.unpacking import Unpacking, safe_name
from limner.errors import Finding, UserError, wrong

KINDS = {".tar": tars.unpack, ".parquet": parquet.unpack}
"""The endings of archives -> what unpacks one."""
_VERSION = 1
_RECORD = "unpacked.json"
_SPARE_BYTES = 1 << 30
_ENDS_BYTES = 1 << 16
_LIKE = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2", ".zip", ".7z", ".rar", ".arrow")

Progress = Callable[[int, int], None]
"""Told how many MiB of how many are done."""


def find(data: Data) -> Archive | None:
    """The archive that `data.path` names; None if that is a folder of pictures, or nothing.

    A folder is one if it, or the folder `data` in it, holds .tar or .parquet files and no picture. Raises UserError for an
    archive of another kind.
    """
    path = data.path
    try:
        if path is None or not path.exists():
            return None
        if path.is_dir():
            shards = _shards(path) or _shards(path / "data")
        else:
            if path.name.lower().endswith(_LIKE):
                said = f"{path.name} is an archive of a kind that is not read."
                raise wrong("data.path", said, "Unpack it, and give the folder; or give a .tar or .parquet file.")
            shards = [path] if path.suffix.lower() in KINDS and path.is_file() else []
    except (OSError, ValueError):
        return None  # `root_of` says what is wrong with it
    return Archive(data, tuple(shards)) if shards else None


def _shards(folder: Path) -> list[Path]:
    found = []
    if folder.is_dir():
        for entry in os.scandir(folder):
            ending = os.path.splitext(entry.name)[1].lower()
            if ending in EXTENSIONS:
                return []
            if ending in KINDS and not entry.name.startswith(".") and entry.is_file():
                found.append(Path(entry.path))
    return sorted(found)


@dataclass(frozen=True)
class Archive:
    """The files of one data set, and the options by which they are read."""

    data: Data
    files: tuple[Path, ...]

    @cached_property
    def folder(self) -> Path:
        """Where it is unpacked, now or later."""
        facts = [_facts(file) for file in self.files]
        said = json.dumps([_VERSION, self.data.caption_column, self.data.caption_extensions, self._name, facts])
        return runs.home() / "cache" / "archives" / hashlib.sha256(said.encode()).hexdigest()[:32]

    @property
    def _name(self) -> str:
        path = self.data.path
        assert path is not None
        return safe_name(path.name if path.is_dir() else path.stem) or "pictures"

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.files)

    def is_unpacked(self) -> bool:
        record = disk.read_json(self.folder / _RECORD)
        try:
            return _num_files(self.folder / self._name) == record["files"]
        except (OSError, TypeError, KeyError):
            return False

    def pictures(self) -> Path:
        """The folder of its pictures. Raises UserError, with a note that it will be unpacked, if it is not."""
        if not self.is_unpacked():
            raise UserError(self.waiting())
        return self.folder / self._name

    def waiting(self) -> list[Finding]:
        """What is to be said of it before it is unpacked: that it will be, and what stands in the way."""
        what = "it" if len(self.files) == 1 else f"its {len(self.files)} files"
        said = f"{self.data.path} is unpacked when the run starts: {what}, about {_mib(self.size)} MiB, into Limner's home."
        out = [Finding("data.path", said, "Until then nothing of what it holds is checked.", "note")]
        if (lack := self._lack()) is not None:
            out.append(lack)
        if (free := disk.free_bytes(self.folder)) < self.size:
            said = f"unpacking {self.data.path} takes about {_mib(self.size)} MiB, {_mib(free)} MiB are free in Limner's home."
            out.append(Finding("data.path", said, "Make room, or set LIMNER_HOME to a folder on a larger disk."))
        return out

    def _lack(self) -> Finding | None:
        return parquet.lacking() if any(f.suffix.lower() == ".parquet" for f in self.files) else None

    def bar(self, may_follow: Callable[[str], bool] | None) -> None:
        """Raises UserError for files that are links to where they may not lead."""
        for file in self.files:
            if may_follow is not None and not may_follow(str(file)):
                raise wrong("data.path", f"{file} leads outside the allowed folders.", "Put the file itself there.")

    def warnings(self) -> list[Finding]:
        """What was left out when it was unpacked."""
        record = disk.read_json(self.folder / _RECORD)
        return self._left_out(record if isinstance(record, dict) else {})

    def _left_out(self, record: dict[str, Any]) -> list[Finding]:
        return [
            Finding("data.path", f"{self.data.path}: {n} left out: {why}, the first is {first}.", "", "warning")
            for why, (n, first) in record.get("left_out", {}).items()
        ]

    def unpack(self, progress: Progress) -> None:
        """Unpack it, unless it is; another process that does so is waited for. Raises UserError if it cannot be."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder.with_suffix(".lock"), progress, _mib(self.size)):
            if self.is_unpacked():
                return
            if faults := [f for f in self.waiting() if f.severity == "error"]:
                raise UserError(faults)
            temporary = self.folder.with_name(f"{disk.TEMPORARY}{self.folder.name[:16]}")
            for left in (temporary, self.folder):  # of one that was killed; of one that somebody took files from
                shutil.rmtree(left, ignore_errors=True)

            def fill(folder: Path) -> None:
                record = self._fill(folder / self._name, progress)
                disk.write_json(folder / _RECORD, {"of": str(self.data.path), **record})

            self._appear(self.folder, temporary, fill)

    def unpack_into(self, folder: Path, progress: Progress) -> list[Finding]:
        """Unpack it into a folder that is made, and return what was left out. Raises UserError if it cannot be."""
        out: dict[str, Any] = {}
        if (lack := self._lack()) is not None:
            raise UserError([lack])

        def fill(temporary: Path) -> None:
            temporary.mkdir(parents=True)
            out.update(self._fill(temporary / folder.name, progress))

        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._stuck(folder, error) from None
        self._appear(folder, disk.temporary_name(folder), fill, inside=folder.name)
        return self._left_out(out)

    def _appear(self, folder: Path, temporary: Path, fill: Callable[[Path], object], inside: str = "") -> None:
        try:
            fill(temporary)
            if hasattr(os, "sync"):
                os.sync()  # once for all: a hundred thousand files one by one would take minutes
            os.rename(temporary / inside, folder)
            disk.fsync(folder.parent)
        except OSError as error:
            raise self._stuck(folder, error) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _stuck(self, folder: Path, error: OSError) -> UserError:
        said = f"{self.data.path} cannot be unpacked into {folder.parent} ({error.strerror or error})."
        return wrong("data.path", said, "Make room there, or choose another folder (for a run: LIMNER_HOME).")

    def _fill(self, root: Path, progress: Progress) -> dict[str, Any]:
        """Fill a folder that is made; returns how many files it holds, and what was left out."""
        done, total = 0, self.size
        root.mkdir(parents=True)
        into = Unpacking(root, self.data.caption_extensions, self.data.caption_column, 20 * total + _SPARE_BYTES)
        try:
            for file in self.files:
                inside = file.stem if len(self.files) > 1 else ""

                def read(count: int, before: int = done) -> None:
                    progress(min(total, before + count) >> 20, _mib(total))

                KINDS[file.suffix.lower()](file, into, inside, read)
                into.finish()
                done += file.stat().st_size
        finally:
            into.close()
        if not into.num_pictures:
            said = f"{self.data.path} holds no picture that Limner opens."
            raise wrong("data.path", said, "Give an archive of .png, .jpg, .webp or .bmp files.")
        left = {why: [count, into.first[why]] for why, count in into.left_out.items()}
        return {"files": into.num_files, "left_out": left}


def of_config(config: Config) -> Iterator[tuple[str, Archive]]:
    """The archives that a configuration names, each with the option that does."""
    data = config.data
    named = [("data.subsets", s.data) for s in subsets.read(data.subsets, data)[0]] if data.subsets else [("data.path", data)]
    beside = (("data.class_path", data.class_path), ("validation.path", config.validation.path))
    named += [(field, data.model_copy(update={"path": path})) for field, path in beside if path is not None]
    for field, of in named:
        if (archive := find(of)) is not None:
            yield field, archive


def unpack_all(config: Config, progress: Progress) -> None:
    """Unpack the archives that a configuration names. Raises UserError under the options that name them."""
    for field, archive in of_config(config):
        try:
            archive.unpack(progress)
        except UserError as error:
            raise UserError([replace(f, field=field) if f.field == "data.path" else f for f in error.findings]) from None


@contextmanager
def _alone(lock: Path, progress: Progress, total: int) -> Iterator[None]:
    held = FileLock(lock)
    while True:
        progress(0, total)
        try:
            held.acquire(timeout=0.5)
            break
        except Timeout:
            continue
    try:
        yield
    finally:
        held.release()


def _facts(file: Path) -> list[object]:
    stat = file.stat()
    with file.open("rb") as content:
        start = content.read(_ENDS_BYTES)
        content.seek(max(0, stat.st_size - _ENDS_BYTES))
        ends = hashlib.sha256(start + content.read(_ENDS_BYTES)).hexdigest()
    return [file.name, stat.st_size, stat.st_mtime_ns, ends]


def _num_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def _mib(count: int) -> int:
    return -(-count // 2**20)
