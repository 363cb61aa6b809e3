"""How pictures are cut, coloured and masked."""

from __future__ import annotations

import os
from collections.abc import Iterable

from PIL import Image

from limner.config import Config
from limner.data import masks
from limner.data.decode import has_transparency
from limner.data.headers import size_of
from limner.data.scan import Picture
from limner.errors import Finding, UserError
from limner.machine import Machine
from limner.preflight.records import Records

_LOOKED_AT = 50
"""Masks that are decoded; all of them with `deep`."""
_OPENED = 2000
"""Pictures that are opened to see whether they have transparency."""


def check_cuts(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    dataset = records.dataset
    if dataset is None or not config.data.random_crop:
        return
    if all(f.bucket == f.resized for f in dataset.fits):
        said = "has no effect: no picture is larger than its bucket, so nothing is cut."
        yield Finding("data.random_crop", said, "Remove it.", "warning")


def check_masks(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    pictures = records.scan.pictures if records.scan is not None else []
    masked = [p for p in pictures if p.settings(config.data).masks != "off"]
    if not masked:
        return
    found = [(p, m) for p, m in zip(masked, masks.find(config.data, masked), strict=True) if m is not None]
    if records.may_follow is not None:
        barred = [m for _, m in found if os.path.islink(m) and not records.may_follow(m)]
        said = "is a link that leads outside the allowed folders."
        yield from (Finding(m, said, "Put the file itself there.") for m in barred[:20])
        found = [(p, m) for p, m in found if m not in set(barred)]
    looked_at = found if records.deep else found[:_OPENED]
    with_mask = [(p, m) for p, m in looked_at if m != p.path or _is_transparent(p.path)]
    is_alpha = all(p.settings(config.data).masks == "alpha" for p in masked)
    lacking, of = len(masked) - len(found) + len(looked_at) - len(with_mask), len(masked) - len(found) + len(looked_at)
    if not with_mask and len(looked_at) == len(found):
        said = "no picture is transparent anywhere." if is_alpha else f"no picture has a mask in {config.data.mask_path}."
        remedy = 'Give pictures with transparency, or set it to "off".' if is_alpha else "Masks are named as their pictures."
        yield Finding("data.masks" if is_alpha else "data.mask_path", said, remedy)
        return
    if lacking:
        said = f"{lacking} of {of} pictures have no {'transparency' if is_alpha else 'mask'}; they are learnt from everywhere."
        yield Finding("data.masks", said, "", "note")
    yield from _odd(with_mask if records.deep else with_mask[:_LOOKED_AT])


def _is_transparent(path: str) -> bool:
    try:
        with Image.open(path, formats=("PNG", "WEBP")) as picture:
            return has_transparency(picture)
    except (OSError, ValueError, SyntaxError):
        return False  # said by the other checks


def _odd(found: list[tuple[Picture, str]]) -> Iterable[Finding]:
    for picture, mask in found:
        try:
            grey = masks.opened(mask, picture.path)
        except UserError as error:
            yield from (error.findings if mask != picture.path else ())
            continue
        if grey is not None and grey.getextrema()[1] == 0:
            said = "is black everywhere." if mask != picture.path else "is transparent everywhere."
            yield Finding(
                mask, f"{said} Nothing is learnt from it.", f"Mend it, or remove {os.path.basename(mask)}.", "warning"
            )
        fault, width, height = size_of(mask)
        if mask != picture.path and not fault and abs(width / height * picture.height / picture.width - 1) > 0.02:
            said = f"is {width} x {height}, of another shape than its picture ({picture.width} x {picture.height})."
            yield Finding(mask, said, "Make it of the same shape, so that it lies where it should.", "warning")
