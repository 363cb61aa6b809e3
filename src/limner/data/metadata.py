"""Metadata files: the captions of many pictures in one .json (kohya's finetuning) or .jsonl (Hugging Face's, kohya's)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from limner.errors import wrong

_MAX_BYTES = 1 << 30
_PATH_KEYS = ("file_name", "image_path", "image", "path")
_TEXT_KEYS = ("text", "caption")


@dataclass
class Metadata:
    """Captions by what the file calls its pictures: a path, with or without ending, or a name."""

    path: Path
    captions: dict[str, str]
    used: set[str] = field(default_factory=set)

    def caption_of(self, picture: str, folder: Path) -> str | None:
        """The caption of a picture that lies in `folder` or below; None if the file does not name it."""
        for key in _names(picture, folder, self.path.parent):
            if key in self.captions:
                self.used.add(key)
                return self.captions[key]
        return None


def _names(picture: str, folder: Path, beside: Path) -> Iterator[str]:
    """What a file may call a picture. By its bare name only where that is not what it calls another one."""
    inside, name = os.path.split(picture)
    stem = os.path.splitext(name)[0]
    for place in _places(inside, folder, beside):
        yield place + name
        yield place + stem
    if not any(os.path.lexists(root / name) for root in (folder, beside)):
        yield name
        yield stem


@lru_cache(maxsize=64)
def _places(inside: str, folder: Path, beside: Path) -> tuple[str, ...]:
    """A picture's folder by its whole path, from `folder` and from the file's own, each with the separator behind it."""
    out = [os.path.join(os.path.abspath(inside), "")]
    for root in (folder, beside):
        try:
            out.append(os.path.join(os.path.relpath(inside, root), ""))
        except ValueError:  # on another drive
            continue
    return tuple(place.replace(os.sep, "/").removeprefix("./") for place in out)


def read(path: Path) -> Metadata:
    """Raises UserError, in words, for a file that is none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise wrong("data.metadata", f"{path} is larger than 1 GiB.", "Divide it.")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise wrong("data.metadata", f"{path} is not UTF-8 text.", "Save it as UTF-8.") from None
    except OSError as error:
        raise wrong("data.metadata", f"{path} cannot be read ({error.strerror}).", "Check the path.") from None
    entries = _lines(path, text) if path.suffix.lower() == ".jsonl" else _whole(path, text)
    captions = {_normal(name): _caption(path, name, entry) for name, entry in entries}
    if not captions:
        raise wrong("data.metadata", f"{path} names no picture.", "Give a file with captions, or remove the option.")
    return Metadata(path, captions)


def _normal(name: str) -> str:
    return os.path.normpath(name.replace("\\", "/")).replace(os.sep, "/")


def _whole(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    entries = _parsed(path, text, "")
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        said = f'{path} is not of the form {{"picture": {{"caption": "...", "tags": "..."}}}}.'
        raise wrong("data.metadata", said, "For one object a line, name it .jsonl.")
    yield from entries.items()


def _lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        entry = _parsed(path, line, f", line {number}")
        name = next((entry[k] for k in _PATH_KEYS if isinstance(entry.get(k), str)), None) if isinstance(entry, dict) else None
        if not name:
            said = f"{path}, line {number} names no picture."
            raise wrong("data.metadata", said, 'Write {"file_name": "a.png", "text": "its caption"}.')
        yield name, entry


def _parsed(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise wrong("data.metadata", f"{path}{where} is not JSON ({error}).", "Mend it.") from None


def _caption(path: Path, name: str, entry: dict[str, Any]) -> str:
    """The caption, and behind it the tags, as sd-scripts joins them."""
    parts = list[str]()
    for part in (next((entry[k] for k in _TEXT_KEYS if entry.get(k)), ""), entry.get("tags") or ""):
        texts = part if isinstance(part, list) else [part]
        if not all(isinstance(t, str) for t in texts):
            raise wrong("data.metadata", f"{path}: the caption or tags of {name} are no text.", "Write them in quotes.")
        parts += [", ".join(texts)]
    return ", ".join(p for p in parts if p)
