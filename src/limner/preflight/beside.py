"""Pictures beside those that are taught: class pictures and held-out ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from limner.config import Config
from limner.data import held_out
from limner.data.classes import num_missing, painted_otherwise, painter, prompt_of, scan_classes
from limner.data.dataset import bucket_rule
from limner.data.scan import Picture, Scan
from limner.errors import Finding
from limner.formats.suited import unsuited_prompts
from limner.machine import Machine
from limner.preflight.output import writable
from limner.preflight.records import Records


def check_class_pictures(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """That there are class pictures, or can be; how many will be painted; and that they are not of what is taught."""
    del machine
    data = config.data
    if data.class_path is None:
        return
    yield from _apart("data.class_path", data.class_path, config, records)
    found = scan_classes(data, records.may_follow)
    yield from _said_of(found, config, "data.class_path")
    records.classes = list(found.pictures)
    yield from _painted_otherwise(config, records)
    missing = num_missing(data, len(found.pictures))
    if not found.pictures and not data.class_count:
        said = f"{data.class_path} holds no usable picture."
        yield Finding("data.class_path", said, "Put some there, or have them painted: set data.class_count.")
    if missing:
        yield from _painted(config, records, missing)
    if data.trigger:
        named = sum(data.trigger.lower() in p.caption.lower() for p in records.classes)
        if named:
            said = f"{named} class pictures have the trigger {data.trigger!r} in their caption, so it comes to mean them."
            yield Finding("data.trigger", said, "Use captions without it.", "warning")


def _painted(config: Config, records: Records, missing: int) -> Iterable[Finding]:
    data, base = config.data, records.base
    assert data.class_path is not None
    if not data.class_prompt or not data.class_prompt.strip():
        said = f"is needed to paint the {missing} missing class pictures."
        yield Finding("data.class_prompt", said, 'Set it, for example to "a photo of a dog".')
        return
    yield from writable("data.class_path", data.class_path)
    side = bucket_rule(config, base).resolution if base is not None else data.resolution or 512
    yield Finding(
        "data.class_path", f"the base model will paint {missing} class pictures into it before the start.", "", "note"
    )
    if base is not None and base.path is not None:
        side = side // base.bucket_step_px * base.bucket_step_px
        yield from unsuited_prompts([prompt_of(config, side, 1)], base, config.sample)
    # those that are still to be painted count already: in the steps, in the buckets, on the disk
    records.to_paint = [Picture(str(data.class_path / "?"), side, side, data.class_prompt, 1, is_class=True)] * missing


def _painted_otherwise(config: Config, records: Records) -> Iterable[Finding]:
    prompt, base = config.data.class_prompt, records.base
    if not prompt or base is None or base.path is None:
        return
    made = painted_otherwise(records.classes, prompt, painter(config.model, base.path))
    if made:
        said = f"{len(made)} pictures in it were painted from another prompt or by another base model; they are used as well."
        yield Finding("data.class_path", said, "Remove them to have them painted anew.", "warning")


def check_held_out(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """That there are pictures to validate with, which are not trained on."""
    del machine
    section, every = config.validation, ("every_steps", "every_epochs")
    if not section.share and section.path is None:
        for name in every:
            if getattr(section, name) is not None:
                said = "has no effect: no pictures are held out."
                yield Finding(f"validation.{name}", said, "Set validation.share or validation.path, or remove this.", "warning")
        return
    if section.path is not None:
        yield from _apart("validation.path", section.path, config, records)
        found = held_out.scan_validation(config, records.may_follow)
        yield from _said_of(found, config, "validation.path")
        if not found.pictures:
            said = f"{section.path} holds no usable picture."
            yield Finding("validation.path", said, "Put some there, or remove this option.")
    if section.share and records.scan is not None and records.scan.pictures:
        kept, held = held_out.parted(config, records.scan.pictures)
        if not held:
            yield Finding("validation.share", "there is only one picture, so none can be held out.", "Set it to 0.")
        else:
            count = len({p.path for p in held})
            said = f"{count} of {count + len({p.path for p in kept})} pictures are not trained on."
            yield Finding("validation.share", said, "", "note")


def _apart(field: str, folder: Path, config: Config, records: Records) -> Iterable[Finding]:
    """That a folder and those of the pictures do not lie in one another: folders inside are read too."""
    pictures = records.scan.pictures if records.scan is not None else []
    for taught in {p.settings(config.data).path for p in pictures} or {config.data.path}:
        if taught is None:
            continue
        try:
            one, other = folder.resolve(), taught.resolve()
        except (OSError, RuntimeError, ValueError):
            continue
        if one == other or one.is_relative_to(other) or other.is_relative_to(one):
            said = f"{folder} and {taught} lie in one another, so the same pictures would be taught."
            yield Finding(field, said, "Put them into folders beside each other.")
            return


def _said_of(found: Scan, config: Config, field: str) -> Iterable[Finding]:
    skip = config.data.skip_broken
    for finding in found.broken[:20]:
        yield Finding(finding.field, f"{finding.message} It will be skipped.", "", "warning") if skip else finding
    if len(found.broken) > 20:
        said = f"{len(found.broken) - 20} more files in it are broken."
        yield Finding(field, said, "Mend or remove those above first.", "warning" if skip else "error")
    if found.num_barred and skip:
        said = f"{found.num_barred} links in it lead outside the allowed folders."
        yield Finding(field, said, "Put the files themselves there, or remove the links.")
    yield from found.warnings
