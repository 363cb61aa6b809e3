"""A folder of pictures as people look at it: how each will be cut, what is odd about it, its tags; filtered and counted."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from limner.config import Config
from limner.data.archives import find as find_archive
from limner.data.buckets import Buckets, Fit
from limner.data.captions import tags_of
from limner.data.dataset import assemble
from limner.data.scan import Picture, Scan, scan
from limner.errors import wrong
from limner.formats.base import Base

Problem = Literal["small", "cropped", "no-caption", "no-trigger", "long-caption"]
PROBLEMS: tuple[Problem, ...] = get_args(Problem)
_ENLARGED = 1.1
_LOST = 0.2
_TOKENS = 75
_KEPT = 3
"""Selections of a survey."""
_WORD = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_")  # each is at least one token


@dataclass(frozen=True, slots=True)
class Row:
    """One picture. It holds little, since there may be a million; the rest is worked out when it is asked for."""

    picture: Picture
    fit: Fit
    folder: Path
    problems: tuple[Problem, ...]

    @property
    def name(self) -> str:
        """Its path inside the folder, with "/"."""
        return _name(self.folder, self.picture.path)

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(tags_of(self.picture.caption))

    @property
    def bucket(self) -> tuple[int, int]:
        return self.fit.bucket

    @property
    def crop(self) -> tuple[float, float, float, float]:
        """What remains of it: (left, top, right, bottom) in px of the upright picture."""
        scale_x, scale_y = self.picture.width / self.fit.resized[0], self.picture.height / self.fit.resized[1]
        left, top = self.fit.crop
        width, height = self.fit.bucket
        return left * scale_x, top * scale_y, (left + width) * scale_x, (top + height) * scale_y

    @property
    def enlarged(self) -> float:
        """How much it is enlarged to fill its bucket; 1 and less: not at all."""
        return max(self.fit.resized[0] / self.picture.width, self.fit.resized[1] / self.picture.height)

    @property
    def lost(self) -> float:
        """The part of its area that is cut off, 0..1."""
        return 1 - self.fit.bucket[0] * self.fit.bucket[1] / (self.fit.resized[0] * self.fit.resized[1])


@dataclass(frozen=True)
class Filter:
    """Which rows are wanted: all that is given must hold. `text` is looked for in names and captions."""

    tags: tuple[str, ...] = ()
    text: str = ""
    problem: str = ""
    bucket: str = ""

    def matches(self, row: Row) -> bool:
        if self.problem and self.problem not in row.problems:
            return False
        if self.bucket and self.bucket != f"{row.bucket[0]}x{row.bucket[1]}":
            return False
        if self.tags and not {t.casefold() for t in self.tags} <= {t.casefold() for t in row.tags}:
            return False
        text = self.text.casefold()
        return not text or text in row.name.casefold() or text in row.picture.caption.casefold()


@dataclass(frozen=True)
class Selection:
    """The rows that a filter leaves, and their tags: (tag, pictures that have it), the most used first."""

    rows: list[Row]
    tags: list[tuple[str, int]]


@dataclass(frozen=True)
class Survey:
    """All rows of a folder in the scan's order, and the scan itself."""

    folder: Path
    rows: list[Row]
    scan: Scan
    rule: Buckets

    @cached_property
    def by_name(self) -> dict[str, Row]:
        return {row.name: row for row in self.rows}

    @cached_property
    def broken(self) -> dict[str, str]:
        """What is wrong with the files that cannot be used, by name."""
        return {_name(self.folder, finding.field): finding.message for finding in self.scan.broken}

    def chosen(self, wanted: Filter) -> list[Row]:
        return self.rows if wanted == Filter() else [row for row in self.rows if wanted.matches(row)]

    def selection(self, wanted: Filter) -> Selection:
        """The last few are kept: of a large folder people turn many pages."""
        found = self._selections.get(wanted)
        if found is None:
            found = Selection(rows := self.chosen(wanted), tag_counts(rows))
            self._selections[wanted] = found
            while len(self._selections) > _KEPT:
                self._selections.pop(next(iter(self._selections)), None)
        return found

    @cached_property
    def _selections(self) -> dict[Filter, Selection]:
        return {}

    def named(self, names: list[str]) -> list[Row]:
        """The rows of these names. Raises UserError for a name that is not in the folder."""
        for name in names:
            if name not in self.by_name:
                raise wrong("pictures", f"{name!r} is not in the folder (any more).", "Look at the folder again.")
        return [self.by_name[name] for name in names]

    @cached_property
    def bucket_table(self) -> list[tuple[tuple[int, int], int, int]]:
        """(bucket, pictures, pictures shown in an epoch), the most used first."""
        pictures, shown = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        for row in self.rows:
            pictures[row.bucket] += 1
            shown[row.bucket] += row.picture.repeats
        return [(bucket, count, shown[bucket]) for bucket, count in sorted(pictures.items(), key=lambda i: (-i[1], i[0]))]

    @cached_property
    def problem_counts(self) -> dict[str, int]:
        counts = Counter(problem for row in self.rows for problem in row.problems)
        return {problem: counts[problem] for problem in PROBLEMS}


def tag_counts(rows: list[Row]) -> list[tuple[str, int]]:
    """(tag, pictures that have it), the most used first; tags that differ in capitals only count as one."""
    counts, spelt = Counter[str](), dict[str, str]()
    for row in rows:
        for tag in {t.casefold(): t for t in row.tags}.items():
            spelt.setdefault(*tag)
            counts[tag[0]] += 1
    return [(spelt[key], count) for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def survey(config: Config, base: Base, may_follow: Callable[[str], bool] | None = None) -> Survey:
    """Look at the folder `config.data.path`. Raises UserError if there is none."""
    if find_archive(config.data) is not None:
        said = f"{config.data.path} is an archive, whose pictures cannot be changed."
        raise wrong("data.path", said, "Make a folder of it (the tool unpack), and look at that.")
    found = scan(config.data, may_follow)
    folder = config.data.path
    if config.data.subsets is not None:
        folder = Path(os.path.commonpath([os.path.dirname(p.path) for p in found.pictures] or [config.data.subsets.parent]))
    assert folder is not None
    dataset = assemble(config, base, found.pictures)
    trigger = (config.data.trigger or "").casefold()
    tokens = _TOKENS * config.model.text_chunks
    fits = {id(p): f for p, f in zip(reversed(dataset.pictures), reversed(dataset.fits), strict=True)}  # the first of each
    combinations: dict[tuple[Problem, ...], tuple[Problem, ...]] = {}  # each once
    rows = []
    for picture in found.pictures:
        fit = fits[id(picture)]
        problems = tuple(_problems(picture, Row(picture, fit, folder, ()), trigger, tokens))
        rows.append(Row(picture, fit, folder, combinations.setdefault(problems, problems)))
    return Survey(folder, rows, found, dataset.buckets)


def _problems(picture: Picture, row: Row, trigger: str, tokens: int) -> Iterator[Problem]:
    """In the order of `PROBLEMS`."""
    if row.enlarged > _ENLARGED:
        yield "small"
    if row.lost > _LOST:
        yield "cropped"
    if not picture.caption:
        yield "no-caption"
    if trigger and trigger not in picture.caption.casefold():
        yield "no-trigger"
    if len(picture.caption) > tokens and len(_WORD.findall(picture.caption)) > tokens:
        yield "long-caption"


def _name(folder: Path, path: str) -> str:
    inside = os.path.join(folder, "")
    # nearly all lie in it, and relpath takes ten times as long
    name = path[len(inside) :] if path.startswith(inside) else os.path.relpath(path, folder)
    return name.replace(os.sep, "/")
