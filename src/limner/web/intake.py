"""Files from a browser become pictures in a folder: harmless names, nothing but pictures and captions, nothing outside."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import stat
import threading
import unicodedata
import zipfile
import zlib
from pathlib import Path

from limner import disk
from limner.data.scan import EXTENSIONS, MAX_CAPTION_BYTES
from limner.errors import Finding, printable, wrong

CAPTIONS = frozenset({".txt", ".caption"})
MAX_PICTURE_BYTES = 256 << 20
MAX_ZIP_BYTES = 4 << 30
MAX_UNPACKED_BYTES = 8 << 30
MAX_FILES = 20_000
MAX_RATIO = 100
_MAX_DIRECTORY_BYTES = 8 << 20  # 20,000 entries with long names; each takes some 300 bytes of memory once it is read
_MAX_DEPTH = 4
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)

_naming = threading.Lock()
_Numbers = dict[tuple[Path, str], int]


class _LongDirectory(Exception):
    """A zip lists more files than are taken."""


class _Archive(io.BufferedReader):
    """A file of which little is read at once. `zipfile` reads the whole directory of a zip so, before it can be asked
    how many entries that has, and contents in small pieces.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise _LongDirectory
        return super().read(size)


def shown(name: str) -> str:
    """A file's name as a message can say it."""
    return printable(name, 100) or "a file without name"


def ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def require_size(name: str, size: int) -> None:
    """Raises UserError if a file of this name is nothing that a run can use, or has more bytes than are taken."""
    if ending(name) == ".zip":
        limit, remedy = MAX_ZIP_BYTES, "Pack it in parts, or drop the folder itself."
    elif ending(name) in EXTENSIONS:
        limit, remedy = MAX_PICTURE_BYTES, "Make it smaller."
    elif ending(name) in CAPTIONS:
        limit, remedy = MAX_CAPTION_BYTES, "Make it shorter."
    else:
        said = "is neither a picture, nor a caption, nor a zip."
        raise wrong(shown(name), said, "Drop .png, .jpg, .webp, .bmp, .txt or .zip files.")
    if size > limit:
        raise wrong(shown(name), f"is larger than {limit >> 20} MiB.", remedy)


def harmless(name: str) -> str:
    """A base name that means the same on every system, as near to the client's as can be; letters of all scripts stay."""
    base = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    base = "".join("_" if c in '<>:"|?*$`' else c for c in base if unicodedata.category(c)[0] != "C")
    stem, end = os.path.splitext(base.strip(" ."))
    stem = stem.strip(" .-") or "picture"
    if _RESERVED.match(stem):
        stem = f"_{stem}"
    while len(os.fsencode(stem)) > 150:
        stem = stem[:-1]
    return stem + end.lower()


def inner(folder: Path, inside: str) -> Path:
    """The folder `inside` of `folder`, with harmless names. Raises UserError where it lies too deep."""
    parts = [part for part in re.split(r"[/\\]+", inside) if part.strip(" .")]
    if len(parts) > _MAX_DEPTH:
        raise wrong(shown(inside), "lies too deep.", f"At most {_MAX_DEPTH} folders inside one another are taken.")
    return folder.joinpath(*map(harmless, parts))


def put(taken: Path, name: str, folder: Path) -> tuple[list[str], list[Finding]]:
    """Give the received file its name in `folder`, or unpack it there. Returns (names of the files, what was refused)."""
    if ending(name) != ".zip":
        return [_place(taken, folder, harmless(name), {})], []
    try:
        with _Archive(io.FileIO(taken)) as file, zipfile.ZipFile(file) as archive:
            return _unpack(archive, name, folder)
    except _LongDirectory:
        raise wrong(shown(name), "lists too many files.", f"At most {MAX_FILES} files are taken.") from None
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise wrong(shown(name), "does not fit on the disk.", "Free some space, then drop it again.") from None
        raise wrong(
            shown(name), f"cannot be unpacked ({printable(error, 100)}).", "Pack it again, without a password."
        ) from None


def _unpack(archive: zipfile.ZipFile, name: str, folder: Path) -> tuple[list[str], list[Finding]]:
    entries = [e for e in archive.infolist() if not e.is_dir() and not _is_litter(e.filename)]
    unpacked = sum(e.file_size for e in entries)
    if len(entries) > MAX_FILES or unpacked > MAX_UNPACKED_BYTES:
        said = f"holds {len(entries)} files of {unpacked >> 20} MiB together."
        raise wrong(shown(name), said, f"At most {MAX_FILES} files and {MAX_UNPACKED_BYTES >> 20} MiB are taken.")
    saved, refused = [], list[Finding]()
    numbers: _Numbers = {}
    renamed: dict[tuple[Path, str], str] = {}  # a caption follows its picture, whatever that is called now
    for entry in sorted(entries, key=lambda e: ending(e.filename) in CAPTIONS):
        if fault := _fault(entry):
            refused.append(Finding(shown(entry.filename), fault, "It was left out.", "warning"))
            continue
        *above, base = re.split(r"[/\\]+", entry.filename)
        place = inner(folder, "/".join(above))
        wanted = harmless(base)
        stem, end = os.path.splitext(wanted)
        wanted = renamed.get((place, stem), stem) + end if end in CAPTIONS else wanted
        place.mkdir(parents=True, exist_ok=True)
        taken = disk.temporary_name(place / "x")
        try:
            with archive.open(entry) as source, taken.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            final = _place(taken, place, wanted, numbers)
        finally:
            taken.unlink(missing_ok=True)
        renamed[place, stem] = os.path.splitext(final)[0]
        saved.append((place / final).relative_to(folder).as_posix())
    return saved, refused


def _is_litter(path: str) -> bool:
    """What systems put beside pictures: hidden files, macOS's second halves."""
    return any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in re.split(r"[/\\]+", path))


def _fault(entry: zipfile.ZipInfo) -> str:
    """Why an entry of a zip is not taken, "" if it is."""
    parts = re.split(r"[/\\]+", entry.filename)
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link."
    if ".." in parts or entry.filename.startswith(("/", "\\")) or ":" in parts[0] or len(parts) > _MAX_DEPTH + 1:
        return "has a path that leads elsewhere."
    if ending(entry.filename) not in EXTENSIONS | CAPTIONS:
        return "is neither a picture nor a caption."
    if entry.file_size > (MAX_CAPTION_BYTES if ending(entry.filename) in CAPTIONS else MAX_PICTURE_BYTES):
        return "is too large."
    if entry.file_size > MAX_RATIO * max(entry.compress_size, 1000):
        return "is packed more tightly than pictures can be."
    return ""


def _place(taken: Path, folder: Path, name: str, numbers: _Numbers) -> str:
    """Rename a finished file into its folder. A picture never replaces another: it gets a number; a caption is replaced.

    `numbers` keeps the last number of each name, so that many pictures of one name are not counted from 1 each time.
    """
    stem, end = os.path.splitext(name)
    disk.fsync(taken)
    with _naming:
        number, final = numbers.get((folder, stem), 1), stem
        while end in EXTENSIONS and any((folder / (final + other)).exists() for other in EXTENSIONS):
            number += 1
            final = f"{stem}-{number}"
        numbers[folder, stem] = number
        os.replace(taken, folder / (final + end))
    return final + end
