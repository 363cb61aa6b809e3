"""The pictures that a run can use."""

from __future__ import annotations

from limner.config import Config
from limner.data import scan
from limner.data.cache import Cache
from limner.data.decode import decode
from limner.engine.journal import Journal
from limner.errors import UserError, wrong

_MOST_NAMED = 100


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
        skipped = {p.path for p, opens in zip(found.pictures, sound, strict=True) if not opens}
        skipped |= {f.field for f in found.broken}
        for name in sorted(skipped)[:_MOST_NAMED]:
            journal.event("warning", message=f"skipped {name}, which does not open")
        if skipped:
            said = f"{len(skipped)} files were skipped; {len({p.path for p in pictures})} pictures are trained"
            journal.event("warning", message=said)
    return pictures


def decodes(path: str) -> bool:
    """Whether a picture opens."""
    try:
        decode(path)
    except UserError:
        return False
    return True
