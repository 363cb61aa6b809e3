"""Merge LoRAs into a model: its files written anew, tensor by tensor."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

from limner import disk
from limner.config.base import files_with_strengths
from limner.config.tools.merge import MergeModel
from limner.errors import UserError, wrong
from limner.formats.base import Base, base_of
from limner.formats.header import CODES
from limner.formats.known import FAMILIES
from limner.tools import preview
from limner.tools.merged_metadata import of_model
from limner.tools.outline import base_here, outline
from limner.tools.tool import Progress, Report, refuse_existing

if TYPE_CHECKING:
    from limner.tools.loras import Given
    from limner.tools.streaming import Group

_BASE, _LORAS, _OUTPUT = "merge_model.base", "merge_model.loras", "merge_model.output"
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".pb", ".xml", ".gguf")


@dataclass(frozen=True)
class _Plan:
    """What is to be done."""

    base: Base
    given: Sequence[Given]
    groups: Sequence[Group]
    dtype: str | None
    bytes: int
    """Of the tensors that are written."""


def look(section: MergeModel) -> Report:
    """What `run` would write."""
    return _report(section, _plan(section))


def run(section: MergeModel, progress: Progress) -> Report:
    """Write it. Raises UserError, StopRequested."""
    from limner.tools.streaming import return_memory

    return_memory()
    plan, done = _plan(section), 0

    def tell(count: int, words: str) -> None:
        nonlocal done
        done += count
        progress(min(done, plan.bytes), plan.bytes, words)

    try:
        if plan.base.layout == "file":
            _write_file(section, plan, tell)
        else:
            _write_folder(section, plan, tell)
    except (OSError, ValueError) as error:
        raise wrong(_OUTPUT, f"the merged model cannot be written: {error}.", "Nothing is left of it.") from error
    report = _report(section, plan)
    if not section.preview_prompt:
        return report
    try:
        progress(plan.bytes, plan.bytes, "painting")
        _paint(section, plan.base)
    except UserError as error:
        return Report([section.output], report.lines, [*report.remarks, *preview.not_painted(error)])
    return report


def _plan(section: MergeModel) -> _Plan:
    from limner.tools import loras, streaming

    base = base_here(section.base, section.config, "merge_model")
    files = files_with_strengths(section.loras, _LORAS)
    if not files:
        raise wrong(_LORAS, "names no file.", 'Give one or more, for example "style.safetensors @ 0.8".')
    _check_output(section, base, [path for path, _ in files])
    family = outline(base)
    given = loras.read(files, family, _LORAS)
    groups = streaming.planned(base, family, given, _BASE)
    dtype = None if section.dtype == "stored" else CODES[section.dtype]
    size = sum(streaming.size_of(streaming.described(h, dtype)) for group in groups for h in group.headers())
    if size > (free := disk.free_bytes(section.output)):
        said = f"{size / 2**30:.1f} GiB are to be written, {free / 2**30:.1f} GiB are free there."
        raise wrong(_OUTPUT, said, "Make room, or choose another place.")
    if section.preview_prompt:
        preview.check(_model(section, base), section.preview_prompt, "merge_model")
    return _Plan(base, given, groups, dtype, size)


def _check_output(section: MergeModel, base: Base, loras: Sequence[Path]) -> None:
    output = section.output
    assert base.path is not None
    if base.layout == "file" and output.suffix != ".safetensors":
        raise wrong(_OUTPUT, f"{output.name} does not end in .safetensors.", "The model is one file; so will the result be.")
    if base.layout == "folder" and output.suffix in _WEIGHTS:
        raise wrong(_OUTPUT, f"{output.name} is called like a file.", "The model is a folder; so will the result be.")
    target, read = output.absolute().resolve(), [base.path.resolve(), *(path.resolve() for path in loras)]
    if target in read or any(target in path.parents for path in read) or base.path.resolve() in target.parents:
        raise wrong(_OUTPUT, f"{output} is, or is around or inside, what is read.", "Choose another place.")
    files = [output, *([preview.place(output)] if section.preview_prompt else [])]
    refuse_existing(files, section.overwrite, _OUTPUT)
    if output.exists() and output.is_dir() != (base.layout == "folder"):
        raise wrong(_OUTPUT, f"{output} is a {'folder' if output.is_dir() else 'file'}.", "Choose another name.")
    if output.is_dir() and not (output / disk.MANIFEST).is_file():
        raise wrong(_OUTPUT, f"{output} was not written by Limner, and is not replaced.", "Choose another name.")


def _report(section: MergeModel, plan: _Plan) -> Report:
    base, layout = plan.base, {"file": "one file", "folder": "a diffusers folder"}[plan.base.layout]
    stored = {code: name for name, code in CODES.items()}.get(plan.dtype or "", "as stored")
    line = f"{FAMILIES[base.family].title}, {layout} of {plan.bytes / 2**30:.2f} GiB, {stored}"
    changed = sum(len(group.changes) for group in plan.groups)
    files = [section.output, *([preview.place(section.output)] if section.preview_prompt else [])]
    lines = [line, *(given.line() for given in plan.given), f"{changed} tensors are changed, all others copied."]
    return Report(files, lines, [remark for given in plan.given for remark in given.remarks])


# --- writing ----------------------------------------------------------------------------------------------------------


def _write_file(section: MergeModel, plan: _Plan, tell: Callable[[int, str], None]) -> None:
    from limner.tools import streaming

    (group,) = plan.groups
    (source,) = group.files
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    metadata = of_model(plan.base, group.headers()[0].metadata, plan.given, section.output.stem, when)
    with disk.replacing(section.output) as temporary:
        streaming.rewrite(group, source, temporary, plan.dtype, metadata, tell)


def _write_folder(section: MergeModel, plan: _Plan, tell: Callable[[int, str], None]) -> None:
    from limner.tools import streaming

    root = plan.base.path
    assert root is not None

    def fill(temporary: Path) -> None:
        written = {file for group in plan.groups for file in group.files}
        for file in _beside_weights(root, FAMILIES[plan.base.family].parts, {f.name for f in written}):
            (temporary / file.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            copyfile(file, temporary / file.relative_to(root))
            tell(0, file.name)
        for group in plan.groups:
            for source, header in zip(group.files, group.headers(), strict=True):
                target = temporary / source.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                streaming.rewrite(group, source, target, plan.dtype, header.metadata or {"format": "pt"}, tell)

    disk.write_folder(section.output, fill)


def _beside_weights(root: Path, parts: Any, written: set[str]) -> Iterator[Path]:
    """What belongs to a diffusers model besides the weights of its parts. Not their variants: they would be those of before."""
    named = disk.read_json(root / "model_index.json")
    assert isinstance(named, dict), "it was read when the model was recognised"
    yield from (f for f in sorted(root.iterdir()) if f.is_file() and _is_wanted(f) and f.name != disk.MANIFEST)
    for folder in sorted(f for f in root.iterdir() if f.is_dir() and f.name in named):
        for place, _, names in os.walk(folder):
            for file in (Path(place) / name for name in sorted(names)):
                if folder.name not in parts or (_is_wanted(file) and not _is_index_of_others(file, written)):
                    yield file


def _is_wanted(file: Path) -> bool:
    return file.suffix not in _WEIGHTS and not file.name.startswith(".")


def _is_index_of_others(file: Path, written: set[str]) -> bool:
    """Whether it lists the pieces of weights that are left out."""
    if not file.name.endswith(".index.json"):
        return False
    index = disk.read_json(file)
    pieces = index.get("weight_map") if isinstance(index, dict) else None
    return not isinstance(pieces, dict) or not {str(p) for p in pieces.values()} <= written


# --- preview ----------------------------------------------------------------------------------------------------------


def _paint(section: MergeModel, base: Base) -> None:
    before = _model(section, base)
    after = {**before, "base": str(section.output)}
    preview.paint(preview.place(section.output), before, after, section.preview_prompt, "merge_model")


def _model(section: MergeModel, base: Base) -> dict[str, Any]:
    """Entries of [model] for the model before; parts that were found beside it are named, as nothing lies beside the result."""
    model = {"base": section.base} | ({"config": str(section.config)} if section.config else {})
    if base.layout == "folder":
        return model
    from limner.config import files
    from limner.tools.outline import named

    with named({"model.base": _BASE, "model.config": "merge_model.config"}):
        others = base_of(files.build({"model": dict(model)}, {}).model).others
    parts = FAMILIES[base.family].parts
    return model | {parts[name].option: str(path) for name, path in others.items()}
