"""Merge LoRAs with each other into one LoRA."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner.config.base import files_with_strengths
from limner.config.tools.merge import MergeLoras
from limner.errors import Finding, UserError, wrong
from limner.formats.base import Base
from limner.formats.header import read_header
from limner.formats.known import FAMILIES
from limner.formats.lora_file import family_of_lora
from limner.tools import preview
from limner.tools.merged_metadata import of_lora
from limner.tools.outline import base_here, outline, usual
from limner.tools.tool import Progress, Report, refuse_output

if TYPE_CHECKING:
    from torch import Tensor

    from limner.adapters.reading import Found
    from limner.tools.loras import Given
    from limner.tools.summing import Summed

_BASE, _LORAS, _OUTPUT = "merge_loras.base", "merge_loras.loras", "merge_loras.output"


@dataclass(frozen=True)
class _Plan:
    """What is to be done."""

    family: Any
    given: Sequence[Given]
    layers: Mapping[str, Sequence[tuple[Found, Given]]]
    """What changes each layer."""
    is_cut: bool


def look(section: MergeLoras) -> Report:
    """What `run` would write."""
    return _report(section, _plan(section))


def run(section: MergeLoras, progress: Progress) -> Report:
    """Write it. Raises UserError, StopRequested."""
    from limner.tools.summing import add, common_scale, cut

    plan = _plan(section)
    summed: dict[str, Summed] = {}
    scale = common_scale(plan.layers.values())
    for done, (name, parts) in enumerate(plan.layers.items()):
        progress(done, len(plan.layers), name)
        target = parts[0][0].target
        rank = (section.conv_rank or section.rank) if target.is_spatial else section.rank
        summed[name] = cut(parts, rank, scale) if plan.is_cut else add(parts, scale)
    _write(section, plan, summed, scale)
    report, ranks = _report(section, plan), {s.rank for s in summed.values() if s.rank}
    lines = [*report.lines, f"Ranks of the layers: {min(ranks)} to {max(ranks)}." if ranks else "No layer has a rank."]
    lost = [s.lost for s in summed.values()]
    if plan.is_cut:
        average = sum(lost) / len(lost)
        lines.append(f"What was cut off: {max(lost):.2%} of the change of a layer at most, {average:.2%} on average.")
    remarks = list(report.remarks)
    if section.preview_prompt:
        progress(len(plan.layers), len(plan.layers), "painting")
        try:
            before = _model(section)
            after = {**before, "merge": [f"{section.output} @ 1"]}
            preview.paint(preview.place(section.output), before, after, section.preview_prompt, "merge_loras")
        except UserError as error:
            remarks += preview.not_painted(error)
    return Report(report.files, lines, remarks)


def _plan(section: MergeLoras) -> _Plan:
    from limner.tools import loras, summing

    files = files_with_strengths(section.loras, _LORAS)
    if len(files) < 2:
        raise wrong(_LORAS, "names fewer than two files.", 'Give all that shall be one: "style.safetensors @ 0.8".')
    beside = [preview.place(section.output)] if section.preview_prompt else []
    refuse_output(section.output, [path for path, _ in files], section.overwrite, _OUTPUT, beside)
    family = outline(_base(section, [path for path, _ in files]))
    try:
        given = loras.read(files, family, _LORAS)
    except UserError as error:
        if section.base or not any("no place" in f.message or "makes no change" in f.message for f in error.findings):
            raise
        note = f"They were compared with the usual {FAMILIES[family.base.family].title} model."
        raise UserError([*error.findings, Finding(_BASE, note, "If theirs is another, give it.", "note")]) from None
    layers = dict[str, list[Any]]()
    for its in given:
        for found in its.layers:
            layers.setdefault(found.name, []).append((found, its))
    is_cut = section.method == "svd"
    faults = [f for name, parts in layers.items() if (f := summing.fault(name, parts, is_cut=is_cut))]
    if not faults and section.lora_names == "diffusers" and not is_cut and not all(map(summing.is_lora, layers.values())):
        faults = ["files in diffusers' names hold LoRA alone, and these hold other kinds too"]
    if faults:
        more = [Finding(_LORAS, f"{len(faults) - 3} more layers like these.", severity="note")] if len(faults) > 3 else []
        raise UserError([*(Finding(_LORAS, f"{f}.", summing.remedy(is_cut=is_cut)) for f in faults[:3]), *more])
    if section.preview_prompt:
        if not section.base:
            raise wrong(_BASE, "a preview is painted with a model, and none is given.", "Set base, or take the preview out.")
        preview.check(_model(section), section.preview_prompt, "merge_loras")
    return _Plan(family, given, layers, is_cut)


def _base(section: MergeLoras, files: Sequence[Path]) -> Base:
    """The base model given, or else the usual one of the first file's family whose family can be told."""
    if section.base:
        return base_here(section.base, section.config, "merge_loras")
    for path in files:
        if not path.is_file():
            raise wrong(_LORAS, f"{path} is not a file.", "Give the path of a LoRA's .safetensors file.")
    found = [f for path in files if (f := family_of_lora(read_header(path, _LORAS))) is not None]
    if not found:
        raise wrong(_LORAS, "the files do not tell which family of models they are for.", "Set base to a model of theirs.")
    return usual(found[0])


def _report(section: MergeLoras, plan: _Plan) -> Report:
    files = [section.output, *([preview.place(section.output)] if section.preview_prompt else [])]
    how = f"cut to rank {section.rank}" if plan.is_cut else "exact: the ranks add up"
    lines = [f"LoRA for {FAMILIES[plan.family.base.family].title}, {len(plan.layers)} layers, {how}, {section.dtype}"]
    return Report(files, [*lines, *(its.line() for its in plan.given)], [r for its in plan.given for r in its.remarks])


def _model(section: MergeLoras) -> dict[str, Any]:
    """Entries of [model]."""
    return {"base": section.base} | ({"config": str(section.config)} if section.config else {})


def _write(section: MergeLoras, plan: _Plan, summed: Mapping[str, Summed], scale: float) -> None:
    from limner.adapters.peft_names import to_diffusers
    from limner.adapters.stacks import apart, joined, num_stacked
    from limner.models.weights import PRECISIONS
    from limner.tools.lora_output import write

    state = {f"{name}.{key}": t for name, s in summed.items() for key, t in s.tensors.items()}
    targets = {name: parts[0][0].target for name, parts in plan.layers.items()}
    if section.lora_names == "diffusers":
        state = to_diffusers(state, targets)
    else:
        state = joined(apart(state, targets, num_stacked(plan.family.adapter_targets(convolutions=True))))
    dtype = PRECISIONS[section.dtype]
    out = {k: _rounded(k, v, dtype) for k, v in state.items()}
    ranks = {s.rank for s in summed.values()}
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rank = ranks.pop() if len(ranks) == 1 else None
    is_plain = all(s.rank and "dora_scale" not in s.tensors for s in summed.values())
    family, method = plan.family.base.family, section.method
    metadata = of_lora(family, plan.given, method, section.output.stem, when, rank, scale, is_plain)
    write(section.output, out, metadata, _OUTPUT)


def _rounded(name: str, tensor: Tensor, dtype: Any) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.contiguous()
    if not tensor.isfinite().all():
        raise wrong(_LORAS, f"{name} holds numbers that are not finite: a file is damaged.", "Leave it out.")
    narrow = tensor.to(dtype).contiguous()
    if not narrow.isfinite().all():
        raise wrong("merge_loras.dtype", f"{name} holds numbers that are too large for fp16.", 'Set "bf16" or "fp32".')
    return narrow
