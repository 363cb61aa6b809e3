"""What WD14 taggers are given and what their answers mean: the picture's preparation, their list of tags, and the choice.

Source: the model cards and the demonstration of SmilingWolf's taggers (huggingface.co/spaces/SmilingWolf/wd-tagger): the
picture on a white square, resized bicubically, its channels in the order BGR, as float32 in 0..255, (N, H, W, 3). The answer
is a probability for each line of selected_tags.csv, whose column `category` is Danbooru's: 9 rating, 4 character, 0 general.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from limner.config.tools.captioning import Tag
from limner.errors import Finding, UserError, printable, wrong
from limner.tools.caption_loop import cleaned

_RATING, _CHARACTER = "9", "4"
_MAX_BYTES = 16 << 20
_SERIES = re.compile(r"(?P<name>.+)[_ ]\((?P<series>[^()]+)\)")


@dataclass(frozen=True, slots=True)
class Known:
    """A tag that the tagger knows."""

    name: str
    category: str


def read_tags(path: Path, field: str) -> list[Known]:
    """The tags of a selected_tags.csv in their order. Raises UserError if it is none."""
    remedy = "Give the selected_tags.csv that was published with the model."
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise wrong(field, f"{path.name} is larger than 16 MiB.", remedy)
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), restval="")
        if not {"name", "category"} <= set(rows.fieldnames or ()):
            raise wrong(field, f"{path.name} has no columns `name` and `category`.", remedy)
        return [Known(row["name"], row["category"].strip()) for row in rows]
    except OSError as error:
        raise wrong(field, f"{path} cannot be read ({error.strerror}).", remedy) from None
    except (UnicodeDecodeError, csv.Error):
        raise wrong(field, f"{path.name} is not a table of tags in UTF-8.", remedy) from None


def prepared(image: Image.Image, side: int) -> np.ndarray:
    """An RGB picture as the taggers want it: (side, side, 3), BGR, float32 in 0..255."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.float32)[:, :, ::-1]


class Choice:
    """Which words are taken of a tagger's answers. Raises UserError for options that mean nothing."""

    def __init__(self, known: Sequence[Known], section: Tag) -> None:
        self.section = section
        self._ratings = [i for i, k in enumerate(known) if k.category == _RATING]
        self._characters = [i for i, k in enumerate(known) if k.category == _CHARACTER]
        apart = {*self._ratings, *self._characters}
        self._general = [i for i in range(len(known)) if i not in apart]
        renamed = _renamed(section.rename)
        unwanted = {_plain(t) for t in section.leave_out.split(",")}
        self._words = [_words(k, section, renamed, unwanted) for k in known]
        self._first = {_plain(t): place for place, t in reversed(list(enumerate(section.first.split(","))))}

    def of(self, probabilities: Sequence[float]) -> list[str]:
        """The tags of one picture, given a probability for each known tag, in the order in which they are written."""
        section = self.section
        general = self._above(self._general, probabilities, section.general_threshold)
        characters = self._above(self._characters, probabilities, section.character_threshold)
        tags = {"first": [*characters, *general], "last": [*general, *characters], "off": general}[section.characters]
        if self._ratings and section.rating != "off":
            rating = self._words[max(self._ratings, key=lambda i: probabilities[i])]
            tags = [*rating, *tags] if section.rating == "first" else [*tags, *rating]
        once = list(dict.fromkeys(tags))
        return sorted(once, key=lambda t: self._first.get(_plain(t), math.inf))

    def _above(self, which: list[int], probabilities: Sequence[float], threshold: float) -> list[str]:
        taken = [i for i in which if probabilities[i] >= threshold]
        if self.section.order == "confidence":
            taken.sort(key=lambda i: -probabilities[i])
        return [word for i in taken for word in self._words[i]]


def _words(known: Known, section: Tag, renamed: Mapping[str, str], unwanted: set[str]) -> list[str]:
    """What is written for a tag: none, one, or (a character and its series) two."""
    names = [known.name]
    if known.category == _CHARACTER and section.character_series != "keep" and (match := _SERIES.fullmatch(known.name)):
        names = [match["name"]] if section.character_series == "remove" else [match["name"], match["series"]]
    if _plain(known.name) in unwanted:
        return []
    spoken = [name if section.underscores or _is_face(name) else name.replace("_", " ") for name in names]
    words = [renamed.get(_plain(word), word) for word in spoken]
    return [c for word in words if (c := cleaned(word)) and _plain(c) not in unwanted]


def _is_face(tag: str) -> bool:
    """Whether a tag is an emoticon, such as ^_^ and (o)_(o): nowhere two letters or digits stand together."""
    return not re.search(r"[^\W_]{2}", tag)


def _plain(tag: str) -> str:
    """What two spellings of one tag have in common."""
    return tag.replace("_", " ").strip().casefold()


def _renamed(texts: Sequence[str]) -> dict[str, str]:
    out, faults = {}, list[Finding]()
    for text in texts:
        tag, arrow, words = text.partition("->")
        if not arrow or not tag.strip():
            faults.append(Finding("tag.rename", f"{printable(text, 80)!r} has no arrow.", 'Write "old tag -> new tag".'))
        out[_plain(tag)] = words.strip()
    if faults:
        raise UserError(faults)
    return out
