"""Writing files that matter: temporary name in the same folder, write, fsync, rename, fsync the folder.

A reader never sees half a file under a final name, and a crash leaves the old file or the new one. Everything that must
survive goes through these functions, so that faults can be injected in one place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
_REPLACED = f"{TEMPORARY}was-"  # then the name of a folder that is being replaced
MANIFEST = "manifest.json"


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no reader takes for a finished file. Kept short: names may be 255 bytes long already."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}")


def fsync(path: Path) -> None:
    """Push one file or folder to the disk. Folders cannot be synced on Windows, where renames are journalled."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(source: Path, target: Path) -> None:
    """os.replace; on Windows tried for two seconds, since a reader that has the target open forbids it."""
    for attempt in range(40):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if os.name != "nt" or attempt == 39:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes `path`, on any failure it is removed.

    `durable` waits until it is on the disk; without, a power cut may leave the file from before, or an empty one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if durable:
            fsync(temporary)
        _rename(temporary, path)
        if durable:
            fsync(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace `path` by `content`, whole or not at all."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str, *, durable: bool = True) -> None:
    """Replace `path` by UTF-8 text with plain newlines, whole or not at all."""
    write_bytes(path, content.encode("utf-8", "surrogateescape"), durable=durable)


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Replace `path` by indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", durable=durable)


def read_json(path: Path, limit: int = 64 << 20) -> Any:
    """The JSON in `path`, or None where there is no such file or it does not hold JSON (half-written, damaged)."""
    try:
        with path.open("rb") as file:
            return json.loads(file.read(min(limit, os.fstat(file.fileno()).st_size + 1)))  # room is made for all that is asked
    except (OSError, ValueError, RecursionError):
        return None


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` appear at once and complete: filled under a temporary name, with a manifest of sizes and hashes, then
    renamed. An earlier folder of ours of that name is replaced; one that has no manifest is not ours: FileExistsError.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise FileExistsError(17, "exists and was not written by Limner", str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(folder)
    temporary.mkdir()
    try:
        fill(temporary)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        manifest = {p.relative_to(temporary).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files}
        (temporary / MANIFEST).write_text(json.dumps({"files": manifest}, indent=2), encoding="utf-8")
        for path in [*files, temporary / MANIFEST, *(p for p in temporary.rglob("*") if p.is_dir()), temporary]:
            fsync(path)
        previous = folder.with_name(_REPLACED + folder.name)
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            _rename(folder, previous)  # a crash before the next line is put right by `sweep`
        _rename(temporary, folder)
        fsync(folder.parent)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _restore(folder)


def _restore(folder: Path) -> None:
    """Give a folder its name back if its replacement did not come to be."""
    previous = folder.with_name(_REPLACED + folder.name)
    if previous.is_dir() and not folder.exists():
        _rename(previous, folder)


def manifest_faults(folder: Path) -> list[str]:
    """What is wrong with a folder written by :func:`write_folder`; empty if every file is there with its hash."""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return [f"{MANIFEST} is missing or unreadable"]
    faults = []
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif not isinstance(entry, dict) or path.stat().st_size != entry.get("bytes") or sha256(path) != entry.get("sha256"):
            faults.append(f"{name} is damaged")
    return faults


def sweep(folder: Path) -> None:
    """Remove what a killed writer left behind in `folder` (temporary names only, not below)."""
    if folder.is_dir():
        for path in folder.glob(f"{_REPLACED}*"):
            _restore(path.with_name(path.name.removeprefix(_REPLACED)))
        for path in folder.glob(f"{TEMPORARY}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path` or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
