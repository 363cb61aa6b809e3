"""The pictures that a run can use."""

from __future__ import annotations

from limner.config import Config
from limner.data import scan
from limner.data.cache import Cache
from limner.data.decode import decode
from limner.engine.journal import Journal
from limner.errors import UserError, wrong


def usable_pictures(config: Config, cache: Cache, journal: Journal) -> list[scan.Picture]:
    """The pictures of the data set. Raises UserError on broken ones unless they are to be skipped.

    To be skipped they must be known before the order is laid down, so then each is decoded once (and never again).
    """
    pictures = sound_pictures(config, scan.scan(config.data), cache, journal)
    if not pictures:
        raise wrong("data.path", f"{config.data.path} holds no usable picture.", "Put .png, .jpg, .webp or .bmp files there.")
    return pictures


def sound_pictures(config: Config, found: scan.Scan, cache: Cache, journal: Journal) -> list[scan.Picture]:
    """What was found, without the broken ones if they are to be skipped. Raises UserError on them if not."""
    if found.broken and not config.data.skip_broken:
        raise UserError(found.broken[:20])
    pictures = found.pictures
    if config.data.skip_broken:
        sound = list(cache.are_sound((p.path for p in found.pictures), decodes))
        pictures = [p for p, opens in zip(found.pictures, sound, strict=True) if opens]
        unsound = {p.path for p, opens in zip(found.pictures, sound, strict=True) if not opens}
        for name in sorted({*unsound, *(f.field for f in found.broken)})[:100]:
            journal.event("warning", message=f"skipped {name}, which does not open")
    return pictures


def decodes(path: str) -> bool:
    """Whether a picture opens."""
    try:
        decode(path)
    except UserError:
        return False
    return True
