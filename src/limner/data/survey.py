"""A folder of pictures as people look at it: how each will be cut, what is odd about it, its tags; filtered and counted."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
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
_WORD = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_")  # each is at least one token


@dataclass(frozen=True, slots=True)
class Row:
    """One picture. `crop` is what remains of it: (left, top, right, bottom) in px of the upright picture."""

    picture: Picture
    name: str
    """Its path inside the folder, with "/"."""
    tags: tuple[str, ...]
    bucket: tuple[int, int]
    crop: tuple[float, float, float, float]
    enlarged: float
    """How much it is enlarged to fill its bucket; 1 and less: not at all."""
    lost: float
    """The part of its area that is cut off, 0..1."""
    problems: tuple[Problem, ...]


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
        return [row for row in self.rows if wanted.matches(row)]

    def named(self, names: list[str]) -> list[Row]:
        """The rows of these names. Raises UserError for a name that is not in the folder."""
        for name in names:
            if name not in self.by_name:
                raise wrong("pictures", f"{name!r} is not in the folder (any more).", "Look at the folder again.")
        return [self.by_name[name] for name in names]

    def bucket_table(self) -> list[tuple[tuple[int, int], int, int]]:
        """(bucket, pictures, pictures shown in an epoch), the most used first."""
        pictures, shown = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        for row in self.rows:
            pictures[row.bucket] += 1
            shown[row.bucket] += row.picture.repeats
        return [(bucket, count, shown[bucket]) for bucket, count in sorted(pictures.items(), key=lambda i: (-i[1], i[0]))]

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
    rows = [_row(folder, p, fits[id(p)], trigger, tokens) for p in found.pictures]
    return Survey(folder, rows, found, dataset.buckets)


def _row(folder: Path, picture: Picture, fit: Fit, trigger: str, tokens: int) -> Row:
    scale_x, scale_y = picture.width / fit.resized[0], picture.height / fit.resized[1]
    left, top = fit.crop
    crop = (left * scale_x, top * scale_y, (left + fit.bucket[0]) * scale_x, (top + fit.bucket[1]) * scale_y)
    enlarged = max(1 / scale_x, 1 / scale_y)
    lost = 1 - fit.bucket[0] * fit.bucket[1] / (fit.resized[0] * fit.resized[1])
    odd: dict[Problem, bool] = {
        "small": enlarged > _ENLARGED,
        "cropped": lost > _LOST,
        "no-caption": not picture.caption,
        "no-trigger": bool(trigger) and trigger not in picture.caption.casefold(),
        "long-caption": len(_WORD.findall(picture.caption)) > tokens,
    }
    problems: tuple[Problem, ...] = tuple(p for p in PROBLEMS if odd[p])
    return Row(
        picture, _name(folder, picture.path), tuple(tags_of(picture.caption)), fit.bucket, crop, enlarged, lost, problems
    )


def _name(folder: Path, path: str) -> str:
    return os.path.relpath(path, folder).replace(os.sep, "/")
