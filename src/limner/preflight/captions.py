"""What is made of captions each time they are shown, and whether these captions are such."""

from __future__ import annotations

from collections.abc import Iterable

from limner.config import Config, Data
from limner.config.defaults import caches_text
from limner.data.scan import settings_of
from limner.errors import Finding
from limner.machine import Machine
from limner.preflight.records import Records


def check_captions(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    pictures = records.scan.pictures if records.scan is not None else []
    settings = settings_of(config.data, pictures)
    if any(not d.caption_separator for d in settings):
        yield Finding("data.caption_separator", "is empty, so nothing would part tags.", 'Set it to ",".')
    if config.memory.cache_text and not config.trains_text and not caches_text(config, settings):
        said = "captions are not cached, since they read otherwise each time: the text encoders stay in memory."
        yield Finding("memory.cache_text", said, "", "note")
    if pictures:
        yield from _without_use(config.data, [p.caption for p in pictures])


def _without_use(data: Data, captions: list[str]) -> Iterable[Finding]:
    """Options for signs that stand in no caption."""
    texts = [f"{data.caption_prefix} {data.caption_suffix}", *captions]
    for name, signs, said in (
        ("keep_separator", (data.keep_separator,), f"{data.keep_separator!r} stands in no caption."),
        ("secondary_separator", (data.secondary_separator,), f"{data.secondary_separator!r} stands in no caption."),
        ("wildcards", ("{", "\n"), "no caption has {several|words} or several lines."),
        ("weighted_captions", ("(", "["), "no caption has a weight, such as (word:1.2)."),
    ):
        if getattr(data, name) and not any(sign in text for text in texts for sign in signs):
            yield Finding(f"data.{name}", f"has no effect: {said}", "Remove it, or mend the captions.", "warning")
    used = [n for n in ("shuffle_tags", "tag_dropout", "tag_warmup_steps") if getattr(data, n)]
    if used and not any(data.caption_separator in text for text in texts):
        said = f"no caption is parted by {data.caption_separator!r}, so each is one tag."
        yield Finding(f"data.{used[0]}", said, "Set data.caption_separator, or remove it.", "warning")
