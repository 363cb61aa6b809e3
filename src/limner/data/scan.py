"""Find the pictures of a folder with their sizes and captions, from headers and small text files only.

Plain folders and kohya's `<repeats>_<class>` folders are both understood, at any depth.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import imagesize

from limner.config import Data
from limner.errors import Finding, wrong

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MAX_PIXELS = 64_000_000
MAX_CAPTION_BYTES = 1 << 20
_MANY_REPEATS = 200
_KOHYA_FOLDER = re.compile(r"([0-9]{1,6})_(.*)", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to train on. `width` and `height` are those of the upright picture, in pixels."""

    path: str
    width: int
    height: int
    caption: str
    repeats: int
    is_class: bool = False
    """A class picture: as many are shown as of the others, and they count `objective.prior_weight`."""


@dataclass
class Scan:
    """What a folder holds: the usable pictures, in a fixed order, and what is wrong with the rest."""

    pictures: list[Picture] = field(default_factory=list)
    broken: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    num_barred: int = 0
    """Links that were not followed; they are among the broken."""


def scan(data: Data, may_follow: Callable[[str], bool] | None = None) -> Scan:
    """Read the folder `data.path`. Raises UserError if there is no such folder.

    A link for which `may_follow(path)` is false is not followed, and named among the broken.
    """
    root = data.path
    if root is None:
        raise wrong("data.path", "no folder of pictures is given.", 'Set it: path = "my-pictures" under [data].')
    try:
        if not root.is_dir():
            said = "is a file, not a folder" if root.exists() else "does not exist"
            raise wrong("data.path", f"{root} {said}.", "Give the folder that holds the pictures.")
    except (OSError, ValueError):
        raise wrong(
            "data.path", f"{str(root)!r} is not a path on this system.", "Give the folder that holds the pictures."
        ) from None
    out, without, ignored = Scan(), 0, set()
    for folder, names, files in _folders(root, out, may_follow):
        # as in sd-scripts, only the folder itself and those directly in it are read for repeats
        repeats, fallback = _kohya(folder.name, data) if folder == root or folder.parent == root else (data.repeats, None)
        if repeats > _MANY_REPEATS and names:
            said = f"{folder.name} asks for {repeats} repeats."
            out.warnings.append(Finding("data.path", said, "Rename it if that number is no count of repeats.", "warning"))
        if repeats == 0:
            ignored.add(folder)
            continue
        for name in names:
            picture = _picture(folder, name, files, data, (repeats, fallback or data.trigger or ""), out)
            if picture is not None:
                out.pictures.append(picture)
                without += not picture.caption
    for folder in sorted(ignored):
        said = f"{folder} asks for 0 repeats, so its pictures are left out."
        out.warnings.append(Finding("data.path", said, "Rename it to 1_… to use them.", "warning"))
    if without:
        said = f"{without} of {len(out.pictures)} pictures have no caption; they are trained with an empty one."
        out.warnings.append(
            Finding("data.trigger", said, "Set data.trigger, or put a .txt file beside each picture.", "warning")
        )
    _check_trigger(data, out)
    return out


def _check_trigger(data: Data, out: Scan) -> None:
    if data.trigger is None or not out.pictures:
        return
    lacking = sum(data.trigger.lower() not in p.caption.lower() for p in out.pictures)
    if lacking:
        said = f"the trigger {data.trigger!r} is missing in {lacking} of {len(out.pictures)} captions."
        out.warnings.append(
            Finding("data.trigger", said, "Pictures are called up only by words of their captions; add it there.", "warning")
        )


def _folders(root: Path, out: Scan, may_follow: Callable[[str], bool] | None) -> Iterator[tuple[Path, list[str], set[str]]]:
    """(folder, its picture names sorted, all its file names), depth first in sorted order; each real folder once."""
    pending, seen = [root], set()
    while pending:
        folder = pending.pop()
        try:
            identity = (folder.stat().st_dev, folder.stat().st_ino)
            if identity in seen:
                continue  # a link back to where we have been
            seen.add(identity)
            entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            out.broken.append(Finding(str(folder), f"cannot be read ({error.strerror}).", "Check its permissions."))
            continue
        if may_follow is not None:
            barred = {e.name for e in entries if e.is_symlink() and not may_follow(e.path)}
            said = "is a link that leads outside the allowed folders."
            out.broken += [Finding(str(folder / n), said, "Put the file itself there.") for n in sorted(barred)]
            out.num_barred += len(barred)
            entries = [e for e in entries if e.name not in barred]
        files = {e.name for e in entries if _is_file(e)}
        pending += [Path(e.path) for e in reversed(entries) if _is_folder(e)]
        yield folder, [n for n in sorted(files) if os.path.splitext(n)[1].lower() in EXTENSIONS], files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()  # pipes, sockets and devices are no pictures, and opening one may hang
    except OSError:
        return False


def _kohya(name: str, data: Data) -> tuple[int, str | None]:
    match = _KOHYA_FOLDER.fullmatch(name)
    if match is None:
        return data.repeats, None
    return min(int(match[1]), 100_000), match[2].strip() or None


def _picture(folder: Path, name: str, files: set[str], data: Data, defaults: tuple[int, str], out: Scan) -> Picture | None:
    path = str(folder / name)
    fault, width, height = _size(path)
    if fault:
        out.broken.append(Finding(path, fault, "Replace or remove it, or set data.skip_broken = true."))
        return None
    caption, problem = _caption(folder, name, files, data.caption_extensions)
    if problem:
        out.broken.append(Finding(problem[0], problem[1], "Mend or remove it, or set data.skip_broken = true."))
        return None
    return Picture(path, width, height, defaults[1] if caption is None else caption, defaults[0])


def _size(path: str) -> tuple[str, int, int]:
    """(what is wrong or "", width, height) from the header; EXIF turns of JPEGs are applied."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(12)
            if not start:
                return "is empty (0 bytes).", 0, 0
            width, height = imagesize.get(file) if _is_picture(start) else (-1, -1)
    except (OSError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "its header is damaged"
        return f"cannot be read as a picture ({reason}).", 0, 0
    width, height = int(width), int(height)
    if width <= 0 or height <= 0:
        return "is not a picture that Limner can open (PNG, JPEG, WebP or BMP).", 0, 0
    if width * height > MAX_PIXELS:
        return f"is {width} x {height}, more than {MAX_PIXELS // 1_000_000} million pixels.", 0, 0
    if min(width, height) < 8:
        return f"is {width} x {height}, too small to learn from.", 0, 0
    if max(width, height) > 12 * min(width, height):
        return f"is {width} x {height}, too long and narrow.", 0, 0
    return "", width, height


def _is_picture(start: bytes) -> bool:
    """Whether a file's first 12 bytes are those of a PNG, JPEG, BMP or WebP, whatever its name says."""
    return start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")


def _caption(
    folder: Path, name: str, files: set[str], extensions: tuple[str, ...]
) -> tuple[str | None, tuple[str, str] | None]:
    """(caption or None if there is none, (file, what is wrong) or None)."""
    stem = os.path.splitext(name)[0]
    for extension in extensions:
        if stem + extension not in files:
            continue
        path = folder / (stem + extension)
        try:
            if path.stat().st_size > MAX_CAPTION_BYTES:
                return None, (str(path), "is too large for a caption (over 1 MiB).")
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            return None, (str(path), "is not UTF-8 text; save it as UTF-8.")
        except OSError as error:
            return None, (str(path), f"cannot be read ({error.strerror}).")
        return clean_caption(text), None
    return None, None


def clean_caption(text: str) -> str:
    """The first line that says something (kohya's rule), without control characters."""
    line = next((part for part in re.split(r"[\r\n\u2028]+", text) if part.strip()), "")
    return "".join(" " if c == "\t" else c for c in line if c == "\t" or unicodedata.category(c) not in ("Cc", "Cs")).strip()
