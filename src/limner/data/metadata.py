"""Metadata files: the captions of many pictures in one .json (kohya's finetuning) or .jsonl (Hugging Face's, kohya's)."""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from limner.errors import UserError, wrong

_MAX_BYTES = 1 << 30
_MAX_KEPT_BYTES = 512 << 20
_MAX_ENTRY = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*+")
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
    captions, kept = dict[str, str](), 0
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
            raise wrong("data.metadata", f"{path} cannot be read: it is no regular file.", "Give the path of a file.")
        with path.open("rb") as file:
            if path.stat().st_size > _MAX_BYTES:
                raise wrong("data.metadata", f"{path} is larger than 1 GiB.", "Divide it.")
            for name, entry in (_lines if path.suffix.lower() == ".jsonl" else _whole)(path, file):
                name, caption = _normal(name), _caption(path, name, entry)
                captions[name] = caption
                kept += sys.getsizeof(name) + sys.getsizeof(caption)
                if kept > _MAX_KEPT_BYTES:
                    raise wrong("data.metadata", f"{path} holds captions of more than 512 MiB.", "Divide it.")
    except UnicodeDecodeError:
        raise wrong("data.metadata", f"{path} is not UTF-8 text.", "Save it as UTF-8.") from None
    except OSError as error:
        raise wrong("data.metadata", f"{path} cannot be read ({error.strerror}).", "Check the path.") from None
    if not captions:
        raise wrong("data.metadata", f"{path} names no picture.", "Give a file with captions, or remove the option.")
    return Metadata(path, captions)


def _normal(name: str) -> str:
    return os.path.normpath(name.replace("\\", "/")).replace(os.sep, "/")


class _Pieces:
    """A JSON text that is read value by value, of which never more than a few MiB are in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._text, self._at, self._is_all = file, "", 0, False
        self._characters = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder()

    def sign(self) -> str:
        """The next sign that is no space, "" at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._is_all or len(self._text) - self._at >= _MAX_ENTRY:
                return self._text[self._at : self._at + 1]
            piece = self._file.read(_MAX_ENTRY)
            self._is_all = not piece
            self._text, self._at = self._text[self._at :] + self._characters.decode(piece, final=self._is_all), 0

    def take(self, sign: str) -> None:
        """Go past a sign. Raises ValueError if it is another."""
        if self.sign() != sign:
            raise ValueError(f"a {sign!r} is missing")
        self._at += 1

    def value(self) -> Any:
        """The next value. Raises ValueError and RecursionError if it is none, or longer than what is read at a time."""
        self.sign()
        value, self._at = self._decoder.raw_decode(self._text, self._at)
        return value


def _whole(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pairs of one object."""
    said = f'{path} is not of the form {{"picture": {{"caption": "...", "tags": "..."}}}}.'
    form = wrong("data.metadata", said, "For one object a line, name it .jsonl.")
    pieces, is_first = _Pieces(file), True
    if pieces.sign() != "{":
        raise form
    try:
        pieces.take("{")
        while pieces.sign() != "}":
            if not is_first:
                pieces.take(",")
            name, is_first = pieces.value(), False
            pieces.take(":")
            entry = pieces.value()
            if not isinstance(name, str) or not isinstance(entry, dict):
                raise form
            yield name, entry
        pieces.take("}")
        if pieces.sign():
            raise ValueError("something stands behind its end")
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise _no_json(path, "", error) from None


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(iter(lambda: file.readline(_MAX_ENTRY), b""), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            entry = json.loads(text) if text.strip() else None
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:
            raise _no_json(path, f", line {number}", error) from None
        if not text.strip():
            continue
        name = next((entry[k] for k in _PATH_KEYS if isinstance(entry.get(k), str)), None) if isinstance(entry, dict) else None
        if not name or not isinstance(entry, dict):
            said = f"{path}, line {number} names no picture."
            raise wrong("data.metadata", said, 'Write {"file_name": "a.png", "text": "its caption"}.')
        yield name, entry


def _no_json(path: Path, where: str, error: Exception) -> UserError:
    return wrong("data.metadata", f"{path}{where} is not JSON ({error}).", "Mend it; no entry has more than a MiB.")


def _caption(path: Path, name: str, entry: dict[str, Any]) -> str:
    """The caption, and behind it the tags, as sd-scripts joins them."""
    parts = list[str]()
    for part in (next((entry[k] for k in _TEXT_KEYS if entry.get(k)), ""), entry.get("tags") or ""):
        texts = part if isinstance(part, list) else [part]
        if not all(isinstance(t, str) for t in texts):
            raise wrong("data.metadata", f"{path}: the caption or tags of {name} are no text.", "Write them in quotes.")
        parts += [", ".join(texts)]
    return ", ".join(p for p in parts if p)
