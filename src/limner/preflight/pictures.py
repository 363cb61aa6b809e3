"""The pictures, and how they fall into buckets."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from limner.config import Config, Data
from limner.data.buckets import Buckets
from limner.data.dataset import assemble, bucket_rule, bucket_rules
from limner.data.decode import decode
from limner.data.headers import MAX_PIXELS
from limner.data.held_out import parted
from limner.data.scan import Picture, settings_of
from limner.errors import Finding, UserError
from limner.formats.base import Base
from limner.machine import Machine
from limner.preflight.records import Records

_PIXELS_AT_ONCE = MAX_PIXELS
"""About 10 bytes each while they are decoded."""


def check_pictures(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    records.scan = found = records.look(config.data, records.may_follow)
    if config.data.skip_broken:
        for finding in found.broken[:50]:
            yield Finding(finding.field, f"{finding.message} It will be skipped.", "", "warning")
    else:
        yield from found.broken[:50]
    if len(found.broken) > 50:
        severity = "warning" if config.data.skip_broken else "error"
        said = f"{len(found.broken) - 50} more files are broken."
        yield Finding("data.path", said, "Mend or remove those above first.", severity)
    if found.num_barred and config.data.skip_broken:  # the trainer, which knows no allowed folders, would follow them
        said = f"{found.num_barred} links among the pictures lead outside the allowed folders."
        yield Finding("data.path", said, "Put the files themselves there, or remove the links.")
    if not found.pictures:
        where = config.data.path or "the data set"
        yield Finding("data.path", f"{where} holds no usable picture.", "Put .png, .jpg, .webp or .bmp files there.")
    yield from found.warnings


def check_depth(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """Decode every picture, if asked to."""
    del machine
    if not records.deep or records.scan is None:
        return
    room = _Room(_PIXELS_AT_ONCE)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        faults = pool.map(lambda p: _fault(p, room), (*records.scan.pictures, *records.classes))
        for finding in filter(None, faults):
            yield replace(finding, severity="warning", remedy="It will be skipped.") if config.data.skip_broken else finding


class _Room:
    """So many pixels may be decoded at once, whatever the number of threads; one picture always may."""

    def __init__(self, pixels: int) -> None:
        self._most, self._taken, self._changed = pixels, 0, threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


def _fault(picture: Picture, room: _Room) -> Finding | None:
    try:
        with room.of(picture.width * picture.height):
            decode(picture.path)
    except UserError as error:
        return error.findings[0]
    return None


def check_buckets(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    if records.base is None:
        return
    base, pictures = records.base, records.scan.pictures if records.scan is not None else []
    settings = settings_of(config.data, pictures)
    found = {f: None for data in settings for rule in bucket_rules(data, base) for f in _rule_faults(data, rule, base)}
    yield from found
    if any(f.severity == "error" for f in found) or not pictures:
        return
    rule = bucket_rule(config, base)
    records.dataset = assemble(config, base, [*parted(config, pictures)[0], *records.classes, *records.to_paint])
    longest, limit = max(max(size) for size in records.dataset.bucket_counts()), base.max_side_px
    if limit is not None and longest > limit:
        said = f"a bucket has a side of {longest} px, this model has places for {limit}."
        yield Finding("data.resolution", said, "Use a lower resolution, or a lower bucket_max_px.")
    small = [p.path for p in pictures if p.width * p.height < rule.resolution**2 / 4]
    if small and config.data.upscale:
        said = (
            f"{len(small)} pictures are less than half the resolution and will be blurred, the first is {Path(small[0]).name}."
        )
        yield Finding("data.resolution", said, "Use larger pictures or a lower resolution.", "warning")


def _rule_faults(data: Data, rule: Buckets, base: Base) -> Iterable[Finding]:
    own = data.resolution or base.resolution_px
    field, family_step = "data.resolution" if rule.resolution == own else "data.more_resolutions", base.bucket_step_px
    if rule.resolution < rule.step:
        said = f"{rule.resolution} is less than a bucket step of {rule.step}."
        yield Finding(field, said, f"Use at least {rule.step}.")
    elif rule.step % base.latent_factor:
        said = f"{rule.step} is not a multiple of {base.latent_factor}, the factor of this model's VAE."
        yield Finding("data.bucket_step_px", said, f"Use {family_step}.")
    elif rule.step % family_step and base.prediction == "flow":  # its transformer looks at patches of 2x2 latents
        yield Finding("data.bucket_step_px", f"{rule.step} is not a multiple of {family_step}.", f"Use {family_step}.")
    else:
        if rule.step % family_step:
            said = f"{rule.step} is not a multiple of {family_step}; pictures of odd sizes train less well."
            yield Finding("data.bucket_step_px", said, f"Use {family_step}.", "warning")
        if data.buckets and not (rule.minimum <= rule.resolution <= rule.maximum):
            said = f"the resolution {rule.resolution} lies outside {rule.minimum}..{rule.maximum}."
            yield Finding("data.bucket_min_px", said, "Make bucket_min_px smaller or bucket_max_px larger.")
