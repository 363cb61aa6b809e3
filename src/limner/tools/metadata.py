"""Show, set and remove what a safetensors file says about itself; its tensors' bytes are copied as they are."""

from __future__ import annotations

import base64
import fnmatch
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from limner import disk
from limner.config.tools.files import Metadata
from limner.data.decode import decode
from limner.errors import Finding, UserError, printable, wrong
from limner.formats.header import read_header
from limner.formats.metadata import TRIGGER
from limner.formats.streamed import with_metadata
from limner.tools.tool import Progress, Report, refuse_existing

THUMBNAIL = "modelspec.thumbnail"
_OWN = {
    "name": "modelspec.title", "author": "modelspec.author", "license": "modelspec.license", "trigger": TRIGGER,
    "description": "modelspec.description", "tags": "modelspec.tags", "usage": "modelspec.usage_hint",
}  # fmt: skip
"""Option -> key of Stability's model metadata, version 1.0.1."""
_THUMBNAIL_PX, _MOST_THUMBNAIL_BYTES = 256, 100_000
_MOST_KEY, _MOST_BYTES = 200, 10_000_000  # readers load all of it before anything else
_SHOWN = 300


def look(section: Metadata) -> Report:
    """What would be changed; without a change to make, what the file says."""
    before, after = _asked(section)
    if not _changes(section):
        return Report(lines=shown(before, section.full))
    return Report([_target(section)], _difference(before, after), _remarks(after))


def run(section: Metadata, progress: Progress) -> Report:
    before, after = _asked(section)
    if not _changes(section):
        return Report(lines=shown(before, section.full))
    target = _target(section)
    _require_room(target, section.file)
    with disk.replacing(target) as temporary:
        with_metadata(section.file, temporary, after, lambda done, total: progress(done, total, "Copying"))
    return Report([target], _difference(before, after), _remarks(after))


def shown(metadata: Mapping[str, str], full: bool = False) -> list[str]:
    """The metadata, a line a key, those of other programs' making last."""
    limit = 1_000_000 if full else _SHOWN
    keys = sorted(metadata, key=lambda key: (not key.startswith("modelspec."), key))
    return [f"{printable(key, _MOST_KEY)} = {_brief(key, metadata[key], limit)}" for key in keys] or ["It says nothing."]


def _brief(key: str, value: str, limit: int) -> str:
    if key == THUMBNAIL and limit == _SHOWN:
        return f"(a picture, {len(value)} letters)"
    return printable(value, limit)


def _changes(section: Metadata) -> bool:
    given = (getattr(section, name) is not None for name in (*_OWN, "thumbnail", "output"))
    return any(given) or bool(section.set or section.remove)


def _target(section: Metadata) -> Path:
    return section.output or section.file


def _asked(section: Metadata) -> tuple[dict[str, str], dict[str, str]]:
    """The metadata as they are, and as they are to be. Raises UserError with all that is wrong."""
    if section.file.suffix.lower() != ".safetensors":
        raise wrong("metadata.file", f"{section.file.name} is not a .safetensors file.", "Convert it first.")
    before = read_header(section.file, "metadata.file").metadata
    if not _changes(section):
        return before, before
    faults, after = list[Finding](), dict(before)
    for pattern in section.remove:
        found = [key for key in after if key == pattern or ("*" in pattern and fnmatch.fnmatchcase(key, pattern))]
        if not found:
            said = f"there is no key {printable(pattern, 80)!r}."
            faults.append(Finding("metadata.remove", said, "Remove it from the list."))
        for key in found:
            del after[key]
    for text in section.set:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or len(key) > _MOST_KEY:
            said = f"{printable(text, 80)!r} is no key=value with a key of at most {_MOST_KEY} letters."
            faults.append(Finding("metadata.set", said, 'Write "key=value".'))
        after[key.strip()] = value.strip()
    after |= {key: text for name, key in _OWN.items() if (text := getattr(section, name)) is not None}
    if section.thumbnail is not None:
        after[THUMBNAIL] = _thumbnail(section.thumbnail)
    if sum(len(k.encode()) + len(v.encode("utf-8", "replace")) for k, v in after.items()) > _MOST_BYTES:
        said = f"with this they would be more than {_MOST_BYTES:,} bytes, which programs choke on."
        faults.append(Finding("metadata.set", said, "Shorten or remove some of them."))
    faults += _refused_target(section)
    if faults:
        raise UserError(faults)
    return before, after


def _refused_target(section: Metadata) -> Iterable[Finding]:
    target = _target(section)
    if section.output is not None and target.suffix.lower() != ".safetensors":
        return [Finding("metadata.output", f"{target.name} does not end in .safetensors.", "Give it that ending.")]
    if target.is_dir():
        return [Finding("metadata.output", f"{target} is a folder.", "Give the name of a file.")]
    try:
        refuse_existing([target], section.overwrite, "metadata.output", "Give metadata.output another name")
    except UserError as error:
        return error.findings
    return []


def _thumbnail(picture: Path) -> str:
    """A picture as a data URL, as the specification has it."""
    if not picture.is_file():
        raise wrong("metadata.thumbnail", f"{picture} is not a file.", "Give the path of a picture.")
    try:
        image = decode(picture, (_THUMBNAIL_PX, _THUMBNAIL_PX))
    except UserError as error:
        raise UserError([Finding("metadata.thumbnail", f.message, "Give another picture.") for f in error.findings]) from None
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    for quality in (90, 75, 50):
        image.save(content := io.BytesIO(), "JPEG", quality=quality)
        if content.tell() <= _MOST_THUMBNAIL_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _require_room(target: Path, source: Path) -> None:
    if disk.free_bytes(target) < source.stat().st_size:
        raise wrong("metadata.output", "there is no room on the disk for the new file.", "Make room, or choose another.")


def _difference(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    lines = [f"- {printable(key, _MOST_KEY)} = {_brief(key, before[key], _SHOWN)}" for key in before if key not in after]
    for key, value in after.items():
        if before.get(key) != value:
            was = f" (was: {_brief(key, before[key], 80)})" if key in before else ""
            lines.append(f"+ {printable(key, _MOST_KEY)} = {_brief(key, value, _SHOWN)}{was}")
    return lines or ["The metadata stay as they are."]


def _remarks(after: Mapping[str, str]) -> list[Finding]:
    lacking = [key for key in ("modelspec.sai_model_spec", "modelspec.architecture") if key not in after]
    if not lacking or not any(key.startswith("modelspec.") for key in after):
        return []
    said = f"Stability's specification asks for {' and '.join(lacking)}, too; most programs do without."
    return [Finding("metadata.set", said, severity="note")]
