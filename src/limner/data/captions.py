"""Edits of captions: what each makes of a caption (pure), and of the caption files of many pictures, before any is written.

A caption is the first line of its file that says something (`scan.clean_caption`); an edit replaces that line and leaves the
file's other lines, its newlines and its byte order mark as they were.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from limner.config.base import Line, Section
from limner.data.scan import MAX_CAPTION_BYTES, Picture, clean_caption
from limner.errors import printable, wrong

MAX_CAPTION = 20_000
"""The longest caption an edit may make, in characters."""
_LINE = re.compile(r"[^\r\n\u2028]+")
ENDINGS = (".txt", ".caption", ".cap", ".tags", ".tag", ".txt2", ".text", ".prompt", ".wd14", ".booru", ".cap2")
"""Of files that are written as captions: with any ending, an edit could reach the program beside a picture (CVE-2024-32024)."""


_Separator = Annotated[Line, Field(min_length=1, max_length=8)]


# --- what an edit makes of one caption --------------------------------------------------------------------------------


class SetCaption(Section):
    """Give all of them this caption."""

    kind: Literal["set"]
    text: Line

    def of(self, caption: str) -> str:
        del caption
        return self.text.strip()


class AddTags(Section):
    """Add tags that are not there yet, at the front or the end."""

    kind: Literal["add"]
    tags: Line
    place: Literal["front", "end"] = "end"
    separator: _Separator = ","

    def of(self, caption: str) -> str:
        here = tags_of(caption, self.separator)
        have = {t.casefold() for t in here}
        new = [t for t in _once(tags_of(self.tags, self.separator)) if t.casefold() not in have]
        return _joined([*new, *here] if self.place == "front" else [*here, *new], caption, self.separator)


class RemoveTags(Section):
    """Remove tags wherever they are."""

    kind: Literal["remove"]
    tags: Line
    separator: _Separator = ","

    def of(self, caption: str) -> str:
        gone = {t.casefold() for t in tags_of(self.tags, self.separator)}
        return _joined([t for t in (tags_of(caption, self.separator)) if t.casefold() not in gone], caption, self.separator)


class RenameTag(Section):
    """Put one tag in another's place."""

    kind: Literal["rename"]
    tag: Line
    to: Line
    separator: _Separator = ","

    def of(self, caption: str) -> str:
        here, wanted = tags_of(caption, self.separator), self.tag.strip().casefold()
        if wanted not in (t.casefold() for t in here):
            return caption
        return _joined(_once(self.to.strip() if t.casefold() == wanted else t for t in here), caption, self.separator)


class ReplaceText(Section):
    """Replace words by others. What is looked for is plain text: a regular expression could run for hours, unstoppable."""

    kind: Literal["replace"]
    find: Annotated[Line, Field(min_length=1)]
    by: Line
    ignore_case: bool = False
    whole_words: bool = False

    def of(self, caption: str) -> str:
        pattern = re.escape(self.find)
        if self.whole_words:
            pattern = rf"(?<!\w){pattern}(?!\w)"
        return re.sub(pattern, lambda _: self.by, caption, flags=re.IGNORECASE if self.ignore_case else 0)


class Affix(Section):
    """Put text before or behind each caption, just as it is typed."""

    kind: Literal["affix"]
    text: Line
    place: Literal["front", "end"] = "front"

    def of(self, caption: str) -> str:
        return self.text + caption if self.place == "front" else caption + self.text


class TidyTags(Section):
    """Remove empty and repeated tags, and sort them if wanted."""

    kind: Literal["tidy"]
    sort: bool = False
    separator: _Separator = ","

    def of(self, caption: str) -> str:
        tags = _once(tags_of(caption, self.separator))
        return f"{self.separator} ".join(sorted(tags, key=str.casefold) if self.sort else tags)


Operation = Annotated[
    SetCaption | AddTags | RemoveTags | RenameTag | ReplaceText | Affix | TidyTags, Field(discriminator="kind")
]


def in_words(operation: Operation) -> str:
    """What the operation is about, short, for a list: the texts that were typed."""
    texts = [v for k, v in operation.model_dump().items() if k in ("text", "tags", "tag", "to", "find", "by") and v.strip()]
    return printable(" → ".join(texts), 80)


def tags_of(caption: str, separator: str = ",") -> list[str]:
    """The parts of a caption between separators, without spaces around them, empty ones left out."""
    return [tag for part in caption.split(separator) if (tag := part.strip())]


def _once(tags: Iterable[str]) -> list[str]:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag.casefold(), tag)
    return list(first.values())


def _joined(tags: list[str], caption: str, separator: str) -> str:
    """The tags as the caption joined its own; the caption itself where they are the same, so that nothing is reformatted."""
    if tags == tags_of(caption, separator):
        return caption
    tight = separator in caption and f"{separator} " not in caption
    return (separator if tight else f"{separator} ").join(t for t in tags if t)


# --- what it makes of files -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Edit:
    """One caption file before and after: its whole text, None where there is no file. `fault` says why it cannot be."""

    picture: str
    file: Path
    old: str
    new: str
    before: str | None = None
    after: str = ""
    fault: str = ""


def caption_file(picture: str, extensions: tuple[str, ...]) -> Path:
    """The file that holds a picture's caption, or would: the first that exists, else that of the first extension.

    Links are followed, so that what is written is what was read. `extensions` are checked ones.
    """
    stem = os.path.splitext(picture)[0]
    return Path(os.path.realpath(next((f for e in extensions if os.path.isfile(f := stem + e)), stem + extensions[0])))


def check_extensions(extensions: tuple[str, ...]) -> None:
    """Raises UserError for an extension that is not one of ENDINGS, and where there is none."""
    for extension in extensions:
        if extension.lower() not in ENDINGS:
            said = f"{extension[:40]!r} is no ending of captions that are written."
            raise wrong("data.caption_extensions", said, f"Those are {', '.join(ENDINGS)}.")
    if not extensions:
        raise wrong("data.caption_extensions", "names no ending.", 'Use one such as ".txt".')


def edits(
    pictures: Iterable[Picture], operation: Operation, extensions: tuple[str, ...], allowed: Callable[[Path], bool]
) -> list[Edit]:
    """What `operation` changes: one Edit for each caption file whose caption becomes another, each file once.

    A picture that has no caption file is edited from the caption it is trained with (its trigger), so that this is kept.
    Files for which `allowed` is false are faults.
    """
    check_extensions(extensions)
    out, seen = [], set()
    for picture in pictures:
        file = caption_file(picture.path, extensions)
        if file in seen:
            continue  # a.png and a.jpg share a.txt
        seen.add(file)
        if not allowed(file):
            out.append(Edit(picture.path, file, picture.caption, "", fault="leads outside the allowed folders"))
            continue
        try:
            before = read(file)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            out.append(Edit(picture.path, file, picture.caption, "", fault=f"cannot be read ({reason})"))
            continue
        old = picture.caption if before is None else clean_caption(before.removeprefix("\ufeff"))
        new = operation.of(old).strip()
        if new != old:
            out.append(edit_of(picture.path, file, old, new, before))
    return out


def read(file: Path) -> str | None:
    """A caption file's whole text, byte order mark and newlines as they are; None if there is no such file.

    Raises OSError and UnicodeDecodeError for what is no caption file.
    """
    try:
        if file.stat().st_size > MAX_CAPTION_BYTES:
            raise OSError(27, "it is over 1 MiB")
        return file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None


def edit_of(picture: str, file: Path, old: str, new: str, before: str | None) -> Edit:
    """The edit that makes the caption `new` of `old` in a file that holds `before` (None: there is none yet)."""
    after = with_caption(before, new)
    fault = ""
    if len(new) > max(MAX_CAPTION, len(old)):
        fault = f"would be {len(new)} characters long, more than {MAX_CAPTION}"
    elif clean_caption(after.removeprefix("\ufeff")) != new:
        fault = "its next line would become the caption; remove that first"
    return Edit(picture, file, old, new, before, after, fault)


def with_caption(text: str | None, caption: str) -> str:
    """A caption file's text (None: no file yet) with `caption` in the place of the line that was its caption."""
    if text is None:
        return caption + "\n"
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    text = text.removeprefix("\ufeff")
    line = next((m for m in _LINE.finditer(text) if m[0].strip()), None)
    if line is None:
        return mark + caption + (text if text.startswith(("\r", "\n")) else "")
    return mark + text[: line.start()] + caption + text[line.end() :]
