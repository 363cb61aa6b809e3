"""What is made of a caption each time it is shown: tags kept, shuffled and left out, wildcards drawn, captions dropped.

The order is sd-scripts' (`process_caption`): dropout, line, prefix and suffix, wildcards, keep, warm-up, shuffle, tag dropout,
secondary separator. Otherwise than there, tags are joined by the separator that parted them, not by a comma whatever it is; a
keep_separator never stays in the text; empty tags vanish; and a prefix goes before whichever line is drawn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Protocol, TypeVar

from limner.config import Data
from limner.config.defaults import captions_vary as varies
from limner.randomness import mix

__all__ = ["Draw", "draw_for", "drops", "is_dropped", "plain", "shown", "varies"]

_Item = TypeVar("_Item")
_BRACES = re.compile(r"\{\{|\}\}|\{(?P<words>[^{}]+)\}")


class Draw(Protocol):
    """The draws that are made for one caption; `random.Random` has them."""

    def random(self) -> float: ...
    def choice(self, seq: list[_Item], /) -> _Item: ...
    def shuffle(self, x: list[str], /) -> None: ...


def draw_for(seed: int, step: int, position: int) -> random.Random:
    """The draws of the caption at a place of a step's global batch."""
    return random.Random(mix(seed, "caption", step, position))


def drops(data: Data) -> bool:
    """Whether pictures are sometimes shown without their captions."""
    return data.caption_dropout > 0 or data.caption_dropout_epochs > 0


def plain(caption: str, data: Data) -> str:
    """The whole caption, nothing left out: what is shown where nothing varies, and what is said of it before the start."""
    if data.wildcards:
        caption = caption.split("\n")[0]
    return _finish(_enclosed(caption, data), data, lambda flexible: flexible)


def shown(caption: str, data: Data, draw: Draw, *, epoch: int, step: int) -> str:
    """The caption as it is shown this time. Of several lines (`data.wildcards`) one is drawn. `epoch`, `step`: from 0."""
    if is_dropped(data, draw, epoch):
        return ""
    if data.wildcards:
        caption = draw.choice(caption.split("\n"))
    caption = _enclosed(caption, data)
    if data.wildcards:
        caption = _with_words_drawn(caption, draw)
    return _finish(caption, data, lambda flexible: _drawn(flexible, data, draw, step))


def is_dropped(data: Data, draw: Draw, epoch: int) -> bool:
    """Whether the picture goes without its caption: by chance, or since all do in this epoch."""
    every = data.caption_dropout_epochs
    return (data.caption_dropout > 0 and draw.random() < data.caption_dropout) or (every > 0 and (epoch + 1) % every == 0)


def _enclosed(caption: str, data: Data) -> str:
    return " ".join(part for part in (data.caption_prefix, caption, data.caption_suffix) if part)


def _with_words_drawn(caption: str, draw: Draw) -> str:
    """`{a|b}` becomes one of its words; `{{` and `}}` stand for the braces themselves."""

    def replaced(match: re.Match[str]) -> str:
        return draw.choice(match["words"].split("|")) if match["words"] else match[0][0]

    return _BRACES.sub(replaced, caption)


def _finish(caption: str, data: Data, change: Callable[[list[str]], list[str]]) -> str:
    is_marked = bool(data.keep_separator) and data.keep_separator in caption
    if is_marked or data.shuffle_tags or data.tag_dropout > 0 or data.tag_warmup_steps > 0:
        first, flexible, last = _parted(caption, data, is_marked)
        caption = _joiner(data.caption_separator).join([*first, *change(flexible), *last])
    if data.secondary_separator:
        caption = caption.replace(data.secondary_separator, data.caption_separator)
    return caption


def _parted(caption: str, data: Data, is_marked: bool) -> tuple[list[str], list[str], list[str]]:
    """(tags that stay first, those that may be changed, those that stay last)."""
    if is_marked:
        first, flexible, last = (*caption.split(data.keep_separator, 2), "", "")[:3]
        return _tags(first, data), _tags(flexible, data), _tags(last, data)
    tags = _tags(caption, data)
    return tags[: data.keep_tags], tags[data.keep_tags :], []


def _tags(text: str, data: Data) -> list[str]:
    parts = text.split(data.caption_separator) if data.caption_separator else [text]
    return [stripped for tag in parts if (stripped := tag.strip())]


def _joiner(separator: str) -> str:
    return separator if separator[-1:].isspace() else f"{separator} "


def _drawn(tags: list[str], data: Data, draw: Draw, step: int) -> list[str]:
    if step < data.tag_warmup_steps:
        least = data.tag_warmup_least
        tags = tags[: max(0, step * (len(tags) - least) // data.tag_warmup_steps + least)]
    if data.shuffle_tags:
        tags = list(tags)
        draw.shuffle(tags)
    if data.tag_dropout > 0:
        tags = [tag for tag in tags if draw.random() >= data.tag_dropout]
    return tags
