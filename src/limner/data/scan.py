"""Find the pictures of a folder with their sizes and captions, from headers and small text files only.

Plain folders and kohya's `<repeats>_<class>` folders are both understood, at any depth.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from limner.config import Data
from limner.data import archives, metadata, subsets, tags
from limner.data.headers import EXTENSIONS, UNSEEN, first_bytes, size_of
from limner.data.metadata import Metadata
from limner.data.remembered import MANY, Remembered
from limner.data.subset import Subset
from limner.errors import Finding, wrong

MAX_CAPTION_BYTES = 1 << 20
_MANY_REPEATS = 200
_KOHYA_FOLDER = re.compile(r"([0-9]{1,6})_(.*)", re.ASCII | re.DOTALL)
_LINES = re.compile(r"[\r\n\u2028]+")

MayFollow = Callable[[str], bool] | None


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to train on. `width` and `height` are those of the upright picture, in pixels."""

    path: str
    width: int
    height: int
    caption: str
    """As it is written; of several lines only with `data.wildcards`. What is shown is made of it by `data.tags`."""
    repeats: int
    subset: Subset | None = None
    """What holds for it in the place of the configuration's [data]; None: that does."""
    is_class: bool = False
    """A class picture: as many are shown as of the others, and they count `objective.prior_weight`."""

    def settings(self, data: Data) -> Data:
        """Its own [data], given the configuration's."""
        return data if self.subset is None else self.subset.data


def settings_of(data: Data, pictures: Iterable[Picture]) -> list[Data]:
    """The configuration's [data], and those that hold for pictures in its place, each once."""
    return list({id(d): d for d in (data, *(p.settings(data) for p in pictures))}.values())


@dataclass
class Scan:
    """What a folder holds: the usable pictures, in a fixed order, and what is wrong with the rest."""

    pictures: list[Picture] = field(default_factory=list)
    broken: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    """Pictures of kinds that are not opened."""
    num_barred: int = 0
    """Links that were not followed; they are among the broken."""
    has_archives: bool = False
    """Whether any of it came out of tar or parquet files."""


def scan(data: Data, may_follow: MayFollow = None) -> Scan:
    """Read the folder `data.path`, or those of `data.subsets`. Raises UserError if there is no such folder.

    A link for which `may_follow(path)` is false is not followed, and named among the broken.
    """
    out = Scan()
    if data.subsets is None:
        _Look(data, None, out, may_follow).look()
    else:
        parts, warnings = subsets.read(data.subsets, data)
        out.warnings += warnings
        for part in parts:
            _bar(part.data, may_follow)
            _Look(part.data, part, out, may_follow).look()
    without = sum(not p.caption for p in out.pictures)
    if without:
        said = f"{without} of {len(out.pictures)} pictures have no caption; they are trained with an empty one."
        out.warnings.append(
            Finding("data.trigger", said, "Set data.trigger, or put a .txt file beside each picture.", "warning")
        )
    _check_trigger(data, out)
    if out.unseen:
        kinds = ", ".join(sorted({_ending(path) for path in out.unseen}))
        said = f"{len(out.unseen)} pictures are of kinds that Limner does not open ({kinds}), and are left out."
        remedy = "Save them as PNG, JPEG or WebP to use them."
        out.warnings.append(Finding("data.path", f"{said} The first is {Path(out.unseen[0]).name}.", remedy, "warning"))
    if data.caption_column is not None and not out.has_archives:
        said = "has no effect: no captions are taken from tar or parquet files."
        out.warnings.append(Finding("data.caption_column", said, "Remove it.", "warning"))
    return out


def _bar(data: Data, may_follow: MayFollow) -> None:
    """Raises UserError for a folder or file of a subset that may not be read, as a link to it might not be followed."""
    for path in filter(None, (data.path, data.metadata, data.mask_path)):
        if may_follow is not None and not may_follow(str(path)):
            said = f"{path} lies outside the allowed folders."
            raise wrong("data.subsets", said, "Put it into one of them, or start Limner with that folder allowed.")


def root_of(data: Data) -> Path:
    """The folder of pictures; of an archive, the one that it was unpacked into. Raises UserError if there is none (yet)."""
    root = data.path
    if root is None:
        raise wrong("data.path", "no folder of pictures is given.", 'Set it: path = "my-pictures" under [data].')
    if (archive := archives.find(data)) is not None:
        return archive.pictures()
    try:
        if not root.is_dir():
            said = "is a file, not a folder" if root.exists() else "does not exist"
            remedy = "Give the folder that holds the pictures, or a .tar or .parquet file."
            raise wrong("data.path", f"{root} {said}.", remedy)
    except (OSError, ValueError):
        raise wrong(
            "data.path", f"{str(root)!r} is not a path on this system.", "Give the folder that holds the pictures."
        ) from None
    return root


class _Look:
    """One look at one folder tree, or at the one folder of a subset, as sd-scripts takes them."""

    def __init__(self, data: Data, subset: Subset | None, out: Scan, may_follow: MayFollow) -> None:
        self.data, self.subset, self.out, self.may_follow = data, subset, out, may_follow
        self.is_class = subset is not None and subset.is_class
        if (archive := archives.find(data)) is not None:
            out.has_archives = True
            archive.bar(may_follow)
            out.warnings += archive.warnings()
        self.root = root_of(data)
        # what an archive is unpacked into has folders of its own making
        self.is_deep = subset is None or archive is not None
        self.metadata: Metadata | None = None if data.metadata is None else metadata.read(data.metadata)
        self.sides: dict[int, int] = {}
        """Equal numbers once: a large data set has few different sides."""

    def look(self) -> None:
        out, ignored = self.out, set()
        for folder, names, files in _folders(self.root, out, self.may_follow, deep=self.is_deep):
            # as in sd-scripts, only the folder itself and those directly in it are read for repeats
            is_read = self.subset is None and (folder == self.root or folder.parent == self.root)
            repeats, fallback = _kohya(folder.name, self.data) if is_read else (self.data.repeats, None)
            if repeats > _MANY_REPEATS and names:
                said = f"{folder.name} asks for {repeats} repeats."
                remedy = "Rename it if that number is no count of repeats."
                out.warnings.append(Finding("data.path", said, remedy, "warning"))
            if repeats == 0:
                ignored.add(folder)
                continue
            self._take(str(folder), names, files, repeats, fallback or self.data.trigger or "")
        for folder in sorted(ignored):
            said = f"{folder} asks for 0 repeats, so its pictures are left out."
            out.warnings.append(Finding("data.path", said, "Rename it to 1_… to use them.", "warning"))
        if self.metadata is not None:
            self._check_metadata(self.metadata)

    def _take(self, folder: str, names: list[str], files: set[str], repeats: int, fallback: str) -> None:
        data, add, sides = self.data, self.out.pictures.append, self.sides
        memory = Remembered(folder, data.caption_extensions, data.wildcards) if len(names) >= MANY else None
        inside = os.path.join(folder, "")
        for name in names:
            path, beside = inside + name, _caption_file(inside, name, files, data.caption_extensions)
            found = self._read(name, path, beside, memory)
            if found is None:
                continue
            width, height, caption = found
            if self.metadata is not None:
                caption = self._told(self.metadata, path, caption)
            caption = fallback if caption is None else caption
            size = sides.setdefault(width, width), sides.setdefault(height, height)
            add(Picture(path, *size, caption, repeats, self.subset, self.is_class))
        if memory is not None:
            memory.save()

    def _read(self, name: str, path: str, beside: str, memory: Remembered | None) -> tuple[int, int, str | None] | None:
        """(width, height, the caption file's text or None); None for what is broken, which is noted."""
        try:
            known = None if memory is None else memory.recall(name, path, beside)
        except OSError:
            known = None  # reading it will say why
        if known is not None:
            return known
        fault, width, height = size_of(path)
        place, caption = path, None
        if not fault and beside:
            place = beside
            fault, caption = _text(beside, self.data.wildcards)
        if fault:
            remedy = "Replace" if place == path else "Mend"
            remedy = f"{remedy} or remove it, or set data.skip_broken = true."
            self.out.broken.append(Finding(place, fault, remedy))
            return None
        if memory is not None:
            memory.keep(name, path, beside, (width, height, caption))
        return width, height, caption

    def _told(self, told: Metadata, path: str, beside: str | None) -> str | None:
        caption = told.caption_of(path, self.root)
        return beside if caption is None else clean_caption(caption, self.data.wildcards)

    def _check_metadata(self, told: Metadata) -> None:
        count = len(told.captions) - len(told.used)
        if not told.used:
            said = f"{told.path} names no picture of {self.root}."
            raise wrong("data.metadata", said, "Paths in it are taken from data.path, or from its own folder.")
        if count:
            said = f"{count} of the {len(told.captions)} entries of {told.path} name no picture of {self.root}."
            self.out.warnings.append(Finding("data.metadata", said, "Check their names.", "warning"))


def _check_trigger(data: Data, out: Scan) -> None:
    own = [p for p in out.pictures if not p.is_class]
    if data.trigger is None or not own:
        return
    trigger = data.trigger.lower()
    lacking = sum(
        trigger not in p.caption.lower() and trigger not in tags.plain(p.caption, p.settings(data)).lower() for p in own
    )
    if lacking:
        said = f"the trigger {data.trigger!r} is missing in {lacking} of {len(own)} captions."
        out.warnings.append(
            Finding("data.trigger", said, "Pictures are called up only by words of their captions; add it there.", "warning")
        )


def _folders(root: Path, out: Scan, may_follow: MayFollow, *, deep: bool) -> Iterator[tuple[Path, list[str], set[str]]]:
    """(folder, its picture names sorted, all its file names), depth first in sorted order; each real folder once."""
    pending, seen = [root], set()
    while pending:
        folder = pending.pop()
        try:
            identity = (folder.stat().st_dev, folder.stat().st_ino)
            if identity in seen:
                continue  # a link back to where we have been
            seen.add(identity)
            entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=attrgetter("name"))
        except OSError as error:
            out.broken.append(Finding(str(folder), f"cannot be read ({error.strerror}).", "Check its permissions."))
            continue
        if may_follow is not None:
            barred = {e.name for e in entries if e.is_symlink() and not may_follow(e.path)}
            said = "is a link that leads outside the allowed folders."
            out.broken += [Finding(str(folder / n), said, "Put the file itself there.") for n in sorted(barred)]
            out.num_barred += len(barred)
            entries = [e for e in entries if e.name not in barred]
        files = [e.name for e in entries if _is_file(e)]
        known = set(files)
        rest = [e for e in entries if e.name not in known]
        folders = {e.name for e in rest if _is_folder(e)}
        pending += [Path(e.path) for e in reversed(rest) if deep and e.name in folders]
        for entry in rest:
            if _ending(entry.name) in EXTENSIONS and entry.name not in folders:
                said = "is a link that leads nowhere." if entry.is_symlink() else "is no file (a pipe, socket or device)."
                out.broken.append(Finding(entry.path, said, "Remove it, or set data.skip_broken = true."))
        out.unseen += [entry.path for entry in entries if entry.name in known and _ending(entry.name) in UNSEEN]
        yield folder, [n for n in files if _ending(n) in EXTENSIONS], known


def _ending(name: str) -> str:
    return name[name.rfind(".") :].lower()


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


def _caption_file(folder: str, name: str, files: set[str], extensions: tuple[str, ...]) -> str:
    """The path of a picture's caption file, "" if there is none. `folder` ends with its separator."""
    stem = name[: name.rindex(".")]
    for extension in extensions:
        if stem + extension in files:
            return folder + stem + extension
    return ""


def _text(path: str, lines: bool) -> tuple[str, str | None]:
    """(what is wrong or "", the caption in a file)."""
    try:
        content = first_bytes(path, MAX_CAPTION_BYTES + 1)
        if len(content) > MAX_CAPTION_BYTES:
            return "is too large for a caption (over 1 MiB).", None
        return "", clean_caption(content.decode("utf-8-sig"), lines)
    except UnicodeDecodeError:
        return "is not UTF-8 text; save it as UTF-8.", None
    except OSError as error:
        return f"cannot be read ({error.strerror}).", None


def clean_caption(text: str, lines: bool = False) -> str:
    """The first line that says something (kohya's rule), without control characters; with `lines` all that do."""
    if text.isprintable():  # as nearly all are
        return text.strip()
    said = [_clean_line(line) for line in _LINES.split(text) if line.strip()]
    return "\n".join(said if lines else said[:1])


def _clean_line(line: str) -> str:
    if line.isprintable():
        return line.strip()
    return "".join(" " if c == "\t" else c for c in line if c == "\t" or unicodedata.category(c) not in ("Cc", "Cs")).strip()
