"""What comes out of an archive, written into one folder: under names that lie in it and that every system takes, and no more
than so much of it. What cannot be used is left out, counted and named."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from limner import parsing
from limner.data.headers import EXTENSIONS, UNSEEN
from limner.errors import wrong

CAPTIONS = ("caption", "text", "prompt")
"""What the caption is called in an archive, if data.caption_column does not say; the first of these that is there."""
MAX_FILES = 5_000_000
MAX_PICTURE_BYTES = 512 << 20
MAX_TEXT_BYTES = 1 << 20
_NOT_EVERYWHERE = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f]|[. ]$')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE | re.DOTALL)
_LONGEST_STEM = 180


class Unpacking:
    """The folder that is filled. `most_bytes` is all that may be written into it."""

    def __init__(self, folder: Path, extensions: Sequence[str], column: str | None, most_bytes: int) -> None:
        self.folder, self.extensions, self.column, self._most = folder, tuple(extensions), column, most_bytes
        self.num_files = self.num_pictures = self._bytes = 0
        self.left_out: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        """For each reason the first name that was left out for it."""
        self._told = tempfile.TemporaryFile(dir=folder.parent)  # noqa: SIM115  # captions of .json files, kept until the end

    def close(self) -> None:
        self._told.close()

    def leave_out(self, why: str, name: str) -> None:
        self.left_out[why] += 1
        self.first.setdefault(why, name[:200])

    def put(self, name: str, size: int, content: BinaryIO, inside: str = "") -> None:
        """Take a file, if it is a picture, its caption, or a .json that may hold one; `inside` is the folder it goes into."""
        end = _ending(name, self.extensions)
        if end is None:
            if (other := name[name.rfind(".") :].lower()) in UNSEEN:
                self.leave_out(f"{other} pictures, which Limner does not open", name)
            return
        place = self._place(inside, name)
        if place is None:
            return
        if size > (MAX_PICTURE_BYTES if end in EXTENSIONS else MAX_TEXT_BYTES):
            self.leave_out("too large", name)
        elif end == ".json" and ".json" not in self.extensions:
            self._tell(place, name, content.read(size))
        else:
            self._write(place, name, size, content, is_picture=end in EXTENSIONS)

    def put_caption(self, stem: str, text: str, inside: str = "") -> None:
        """Write a caption for the picture of this name without its ending."""
        content = text.encode("utf-8", "replace")
        place = self._place(inside, stem + self.extensions[0]) if self.extensions else None
        if place is not None and len(content) <= MAX_TEXT_BYTES:
            self._write(place, stem, len(content), io.BytesIO(content), is_picture=False)

    def finish(self) -> None:
        """Write the captions that .json files told, beside pictures that have none else."""
        self._told.seek(0)
        for line in self._told:
            stem, text = json.loads(line)
            if self.extensions and not any((self.folder / (stem + e)).is_file() for e in self.extensions):
                content = text.encode("utf-8", "replace")
                place = self.folder / (stem + self.extensions[0])
                self._write(place, stem, len(content), io.BytesIO(content), is_picture=False)
        self._told.seek(0)
        self._told.truncate()

    def _tell(self, place: Path, name: str, content: bytes) -> None:
        try:
            told = parsing.json_value(content.decode("utf-8-sig"))
        except ValueError:
            self.leave_out(".json files that hold no JSON", name)
            return
        text = caption_in(told, self.column) if isinstance(told, dict) else None
        if text is not None:
            stem = place.relative_to(self.folder).as_posix().removesuffix(place.suffix)
            self._told.write(json.dumps([stem, text]).encode() + b"\n")

    def _place(self, inside: str, name: str) -> Path | None:
        """Where a file goes; None, noted, if it has no place in the folder. A hidden one has none either: no scan sees it."""
        parts = [p for p in name.split("/") if p not in ("", ".")]
        if name.startswith("/") or ".." in parts:
            self.leave_out("names that lead out of the folder", name)
        elif len(parts) > 16 or len(name) > 1000:
            self.leave_out("names that are too long", name)
        elif parts and not any(p.startswith(".") for p in parts):
            return self.folder.joinpath(*([safe_name(inside)] if inside else []), *map(safe_name, parts))
        return None

    def _write(self, place: Path, name: str, size: int, content: BinaryIO, *, is_picture: bool) -> None:
        self._count(size)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb") as file:
                shutil.copyfileobj(content, file)
        except (FileExistsError, NotADirectoryError):
            self.leave_out("names that are taken", name)
            return
        self.num_files += 1
        self.num_pictures += is_picture

    def _count(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._most or self.num_files >= MAX_FILES:
            said = f"holds far more than its size tells, over {self._most >> 20} MiB or {MAX_FILES} files."
            raise wrong("data.path", said, "Unpack it yourself, if you trust it, and give the folder.")


def safe_name(part: str) -> str:
    """One part of a path as every system takes it. A picture's and its caption's stay the same but for the ending."""
    part = part.encode("utf-8", "replace").decode("utf-8")
    stem, dot, ending = part.rpartition(".")
    stem, ending = (stem, dot + ending) if stem and len(ending) <= 16 else (part, "")
    if len(stem.encode()) > _LONGEST_STEM:
        digest = hashlib.sha256(stem.encode()).hexdigest()[:12]
        stem = f"{stem.encode()[: _LONGEST_STEM - 13].decode('utf-8', 'ignore')}-{digest}"
    part = _NOT_EVERYWHERE.sub("_", stem + ending)
    return f"_{part}" if _DEVICES.fullmatch(part) else part


def caption_in(told: Mapping[str, Any], column: str | None) -> str | None:
    """The caption among named values; of a list each text is a line. None if there is none."""
    for name in (column,) if column is not None else CAPTIONS:
        value = told.get(name)
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            return "\n".join(" ".join(text.splitlines()) for text in value)
    return None


def _ending(name: str, extensions: Sequence[str]) -> str | None:
    lower = name[name.rfind(".") :].lower() if "." in name else ""
    if lower in EXTENSIONS or lower == ".json":
        return lower
    return next((e for e in extensions if name.endswith(e)), None)
