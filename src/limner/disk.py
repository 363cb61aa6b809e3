"""Writing files that matter: temporary name in the same folder, write, fsync, rename, fsync the folder.

A reader never sees half a file under a final name, and a crash leaves the old file or the new one. Everything that must
survive goes through these functions, so that faults can be injected in one place.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from limner import parsing
from limner.errors import UserError

ASIDE = ".damaged-"
"""In the name of what was set aside; then the time."""
_ASIDE_TIME = "%Y-%m-%d_%H%M%S_%f"
DATABASE = ("-wal", "-shm", "")
"""How the names of an SQLite database's files end: its journals would be played into another one of its name."""
TEMPORARY = ".tmp-"
_REPLACED = f"{TEMPORARY}was-"  # then the name of a folder that is being replaced
MANIFEST = "manifest.json"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""No space on the disk, none left of a quota, or a file system that takes no file of that size."""
_OURS = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{12}")
_OF_RUST = re.compile(r"\(os error ([0-9]{1,5})\)", re.ASCII)
_PIECE_BYTES = 32 << 20


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


def as_os_error(error: BaseException, path: Path) -> OSError | None:
    """What the system refused, however a library puts it; of `path`, where no file is named. None if it was something else."""
    if isinstance(error, OSError):
        is_told = error.errno is None or error.filename is not None
        return error if is_told else OSError(error.errno, error.strerror, str(path))
    if isinstance(error, UserError):
        return None
    said = str(error)
    if found := _OF_RUST.search(said):  # safetensors
        return _system_error(int(found[1]), path)
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) if "database or disk is full" in said else None  # SQLite


def _system_error(number: int, path: Path) -> OSError:
    """The error of this number as the system counts: on Windows they are not errno's, which Python then finds."""
    if sys.platform == "win32":
        return OSError(None, ctypes.FormatError(number), str(path), number)
    return OSError(number, os.strerror(number), str(path))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system refuses inside is said of `path`: nobody knows the temporary names, and libraries name none at all."""
    try:
        yield
    except Exception as error:
        failed = as_os_error(error, path)
        if failed is not None and failed.filename is not None and TEMPORARY in str(failed.filename):
            failed = OSError(failed.errno, failed.strerror, str(path))
        if failed is None or failed is error:
            raise
        raise failed from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where they are missing. They are on the disk: a power cut would else take them away
    with all that has been written into them since."""
    if folder.is_dir():
        return
    if folder.parent != folder:  # a disk that is not there
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):  # one may write into a folder that one may not read
        fsync(folder.parent)


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there. A folder loses its name first: never is half of one to be seen. What cannot be
    deleted stays."""
    with contextlib.suppress(OSError):
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        nameless = temporary_name(path)
        _rename(path, nameless)
        fsync(path.parent)
        shutil.rmtree(nameless, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes `path`, on any failure it is removed.

    `durable` waits until it is on the disk; without, a power cut may leave the file from before, or an empty one.
    """
    make_folder(path.parent)
    temporary = temporary_name(path)
    try:
        with naming(path):
            yield temporary
            if durable:
                fsync(temporary)
            _rename(temporary, path)
            if durable:
                fsync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # it is renamed, or was never made, or the disk is read-only by now
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


def read_json(path: Path, limit: int = 64 << 20, *, is_ours: bool = False) -> Any:
    """The JSON in `path`, or None where there is no such file or it does not hold JSON (half-written, damaged, too long).

    What is ours holds no NaN and no infinity either, which other people's programs write.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                return None
            # room is made for all that is asked
            return (parse_json if is_ours else parsing.json_value)(file.read(min(limit, size + 1)))
    except (OSError, ValueError, RecursionError):
        return None


def parse_json(text: bytes) -> Any:
    """JSON as the standard has it: its numbers are finite. Raises ValueError, or RecursionError."""
    return _STRICT.decode(text.decode("utf-8"))


def parse_line(line: bytes) -> Any:
    """The same, three times as fast, of a line among very many; but 1e999 is an infinity."""
    return _QUICK.decode(line.decode("utf-8"))


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


_STRICT = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
_QUICK = json.JSONDecoder(parse_constant=_refuse)


def aside_name(path: Path) -> Path:
    """What it would be called if it were set aside now."""
    return path.with_name(f"{path.name}{ASIDE}{datetime.datetime.now():{_ASIDE_TIME}}")


def when_set_aside(name: str) -> datetime.datetime:
    """The time in such a name; a file's own times tell it nowhere alike. Raises ValueError if there is none."""
    return datetime.datetime.strptime(name.partition(ASIDE)[2][:24], _ASIDE_TIME)


def set_aside(path: Path, aside: Path | None = None) -> Path | None:
    """Rename what is damaged, so that nothing is lost that its owner may want to mend; returns where it is now.

    None if another process has put it right meanwhile. Raises OSError if it cannot be renamed.
    """
    is_folder = path.is_dir() and not path.is_symlink()
    aside = aside or aside_name(path)
    if os.name != "nt":  # nothing is renamed onto another kind: what came into its place meanwhile, such as a held lock, stays
        aside.mkdir() if is_folder else aside.touch()
    try:
        os.replace(path, aside)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.rmdir() if is_folder else aside.unlink()
        if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
            return None
        raise
    return aside


def set_database_aside(path: Path) -> None:
    """Set aside an SQLite database, with its journals."""
    aside = aside_name(path)
    for end in DATABASE:
        if os.path.lexists(path.with_name(path.name + end)):
            set_aside(path.with_name(path.name + end), aside.with_name(aside.name + end))


def own_folder(path: Path) -> Path:
    """A folder of ours, made where it is missing; a file in its place is set aside, a link to nothing (a disk that is not there
    now) is not: FileExistsError."""
    try:
        make_folder(path)
    except FileExistsError:
        if path.is_symlink():
            raise
        set_aside(path)
        path.mkdir(exist_ok=True)
    return path


def lock(path: Path, seconds: float) -> filelock.FileLock:
    """A lock file, to be entered, waited for that long: then it raises filelock.Timeout. A folder in its place is set aside;
    what the file holds means nothing."""
    if path.is_dir():
        set_aside(path)
    return filelock.FileLock(path, timeout=seconds)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        # large pieces: beside a thread that imports, each waits for the interpreter for some milliseconds
        piece = memoryview(bytearray(min(_PIECE_BYTES, os.fstat(file.fileno()).st_size + 1)))
        while count := file.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` appear at once and complete: filled under a temporary name, with a manifest of sizes and hashes, then
    renamed. An earlier folder of ours of that name is replaced; one that has no manifest is not ours: FileExistsError.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise FileExistsError(17, "exists and was not written by Limner", str(folder))
    make_folder(folder.parent)
    temporary = temporary_name(folder)
    try:
        with naming(folder):
            temporary.mkdir()
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
    if (previous / MANIFEST).is_file() and not folder.exists():
        _rename(previous, folder)


def manifest_faults(folder: Path) -> list[str]:
    """What is wrong with a folder written by :func:`write_folder`; empty if every file is there with its hash."""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return [f"{MANIFEST} is missing or unreadable"]
    faults = []
    for name, entry in manifest["files"].items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            faults.append(f"{name} is outside")
        elif not path.is_file():
            faults.append(f"{name} is missing")
        elif not isinstance(entry, dict) or path.stat().st_size != entry.get("bytes") or sha256(path) != entry.get("sha256"):
            faults.append(f"{name} is damaged")
    return faults


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, however deep the folders lie in one another: that of Python 3.11 calls itself for each."""
    pending = [str(folder)]
    while pending:
        if (found := next(os.walk(pending.pop()), None)) is not None:
            yield found  # whoever looks may drop folders, as with os.walk
            inside, folders, _ = found
            pending += [path for n in reversed(folders) if not os.path.islink(path := os.path.join(inside, n))]


def sweep(folder: Path, *, idle_seconds: float = 0.0) -> None:
    """Remove what a killed writer left behind in `folder` (temporary names only, not below).

    Where others may be writing, `idle_seconds` spares what changed within so many seconds. What is not ours to delete stays.
    """
    if not folder.is_dir():
        return
    left = [p for p in folder.glob(f"{TEMPORARY}*") if _is_temporary(p) and (not idle_seconds or _idle_for(p) > idle_seconds)]
    for path in left:
        if path.name.startswith(_REPLACED):
            final = path.with_name(path.name.removeprefix(_REPLACED))
            with contextlib.suppress(OSError):
                _restore(final)
            if not final.exists():
                continue  # it is the only one that is left
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_temporary(path: Path) -> bool:
    """Whether a name is one that we give, and not only one that looks like it."""
    return _OURS.fullmatch(path.name) is not None or path.name.startswith(_REPLACED)


def _idle_for(path: Path) -> float:
    """Seconds since a file or folder was last written or renamed; 0 if it is gone."""
    with contextlib.suppress(OSError):
        facts = path.stat()
        return time.time() - max(facts.st_mtime, facts.st_ctime)
    return 0.0


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds `path` or its nearest existing parent."""
    return shutil.disk_usage(_there(path)).free


def disk_of(path: Path) -> int:
    """A number for the disk that holds `path` or its nearest existing parent."""
    return _there(path).stat().st_dev


def mount_of(path: Path) -> Path:
    """Where the disk that holds `path` or its nearest existing parent is mounted: without it, that of the folder's parents."""
    place = _there(path).resolve()
    while not os.path.ismount(place) and place != place.parent:
        place = place.parent
    return place


def _there(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
