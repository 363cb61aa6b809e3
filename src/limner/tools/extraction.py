"""A LoRA from the difference of two models, layer by layer: up @ down is the nearest matrix of its rank (Eckart and Young,
1936) to tuned - base."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from limner.config.tools.ranks import Extract
from limner.errors import Finding, wrong
from limner.formats.known import FAMILIES
from limner.formats.metadata import ARCHITECTURES, BASE_VERSIONS
from limner.tools.lora_output import write
from limner.tools.low_rank import shaped
from limner.tools.model_layers import ModelLayers, find
from limner.tools.ranked_file import (
    Line,
    check_device,
    described,
    in_dtype,
    network_keys,
    report_lines,
    rule_words,
)
from limner.tools.ranks import check_value, clamped, cut_matrix, is_rough, squares_of
from limner.tools.tool import Progress, Report, refuse_output

_TOOL = "extract"


@dataclass(frozen=True)
class _Job:
    base: ModelLayers
    tuned: ModelLayers
    names: list[str]
    """The layers to look at."""
    remarks: list[Finding]


def look(section: Extract) -> Report:
    """Which layers would be compared, and how. No numbers are read."""
    job = _job(section)
    shapes = {name: _flat(job.base.shape(name)) for name in job.names}
    rough = sum(is_rough(shapes[name], section.rule, _most(section, job.base, name)) for name in job.names)
    ranks = {name: min(_most(section, job.base, name), *shapes[name]) for name in job.names}
    size = sum(ranks[name] * sum(shapes[name]) for name in job.names) * (4 if section.dtype == "fp32" else 2)
    parts = ", ".join(dict.fromkeys(job.base.layers[name][0].part for name in job.names))
    title = FAMILIES[job.base.base.family].title
    lines = [
        f"{title}: {len(job.names)} layers ({parts}) are compared, and those that differ written: {size / 1e6:.1f} MB at most."
    ]
    if rough:
        lines.append(f"Of {rough} large layers the largest singular values are found by random projection, of the rest all.")
    return Report([section.output], lines, job.remarks)


def run(section: Extract, progress: Progress) -> Report:
    """Compare, and write the LoRA. Two layers are in memory at a time, and the LoRA itself."""
    job = _job(section)
    remarks, device = list(job.remarks), torch.device(section.device)
    names = _without_unchanged_text(section, job, progress, remarks)
    tensors, lines, same = dict[str, Tensor](), list[Line](), 0
    for done, name in enumerate(names):
        progress(done, len(names), name)
        change = _change(job, name).to(device)
        if not bool(change.any()):
            same += 1
            continue
        shape = change.shape
        change = change.flatten(1)
        cut = cut_matrix(change, section.rule, section.value, _most(section, job.base, name))
        if section.clamp_quantile < 1:
            cut = clamped(cut, change, section.clamp_quantile)
        down, up = shaped(cut.product, shape[2:])
        tensors[f"{name}.lora_down.weight"] = in_dtype(down, section.dtype, name, "extract.dtype")
        tensors[f"{name}.lora_up.weight"] = in_dtype(up, section.dtype, name, "extract.dtype")
        tensors[f"{name}.alpha"] = torch.tensor(float(cut.product.rank))
        lines.append(Line(name, str(min(change.shape)), cut))
    if not lines:
        raise wrong("extract.tuned", "the two models do not differ in any layer that a LoRA changes.", "Choose another model.")
    own = {name for name in names if job.base.layers[name][0].part == "denoiser"}
    beside = _beside(job, section, sum(line.cut.squares for line in lines if line.name in own), progress)
    progress(len(names), len(names), "writing")
    metadata = _metadata(section, job, rule_words(section, section.conv_rank))
    write(section.output, tensors, metadata, "extract.output")
    said = [f"{same} layers are the same in both models and left out."] if same else []
    return Report([section.output], [*report_lines(lines, section.verbose), *said, *beside], remarks)


def _job(section: Extract) -> _Job:
    """Both models, opened and compared by their names and shapes. Raises UserError."""
    check_value(section, _TOOL)
    check_device(section, _TOOL)
    found = find(section.base, "extract.base", section.config), find(section.tuned, "extract.tuned", section.config)
    read = [base.path for base in found if base.path is not None]
    refuse_output(section.output, read, section.overwrite, "extract.output")
    if found[0].family != found[1].family:
        said = f"{Path(section.tuned).name} is a {found[1].family} model, {Path(section.base).name} a {found[0].family} model."
        raise wrong("extract.tuned", said, "Choose two models of one family.")
    base, tuned = ModelLayers(found[0], "extract.base"), ModelLayers(found[1], "extract.tuned")
    parts = [part for part in base.parts() if part in tuned.parts()]
    remarks = [
        Finding("extract", f"{part} is in one of the two models only and left out.", severity="note")
        for part in sorted({*base.parts(), *tuned.parts()} - {*parts})
    ]
    if found[0].prediction != found[1].prediction:
        said = f"{Path(section.tuned).name} predicts {found[1].prediction}, {Path(section.base).name} {found[0].prediction}."
        remarks.append(
            Finding("extract.tuned", said, "With the LoRA the base model predicts as the tuned one does.", "warning")
        )
    here = {name for name, targets in base.layers.items() if targets[0].part in parts}
    there = {name for name, targets in tuned.layers.items() if targets[0].part in parts}
    differ = sorted(here ^ there) or [name for name in base.layers if name in here and base.shape(name) != tuned.shape(name)]
    if differ:
        said = f"the two models are not of one shape: {len(differ)} layers differ, the first is {differ[0]}."
        raise wrong("extract.tuned", said, "Choose the model that the tuned one was made from.")
    named = {t.in_file for t in base.family.adapter_targets(convolutions=section.conv_rank is not None)}
    return _Job(base, tuned, [name for name in base.layers if name in named and name in here], remarks)


def _most(section: Extract, layers: ModelLayers, name: str) -> int:
    return section.conv_rank if layers.is_spatial(name) and section.conv_rank is not None else section.rank


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """As a matrix (outputs, columns)."""
    return shape[0], prod(shape[1:])


def _change(job: _Job, name: str) -> Tensor:
    """tuned - base. Raises UserError where one of them is no number."""
    base, tuned = job.base.layer(name), job.tuned.layer(name)
    change = tuned - base
    if not bool(change.isfinite().all()):
        at_fault = job.tuned if bool(base.isfinite().all()) else job.base
        said = f"{at_fault.base.source}: {name} holds numbers that are not finite (NaN or infinite)."
        raise wrong(at_fault.field, said, "Choose a model that is whole.")
    return change


def _without_unchanged_text(section: Extract, job: _Job, progress: Progress, remarks: list[Finding]) -> list[str]:
    """The layers, without those of text encoders in which nothing changed by more than `min_diff`."""
    out = job.names
    for part in job.base.parts():
        own = [name for name in job.names if job.base.layers[name][0].part == part]
        if part == "denoiser" or part not in job.tuned.parts():
            continue
        largest = 0.0
        for done, name in enumerate(own):
            progress(done, len(own), f"comparing {part}")
            largest = max(largest, float(_change(job, name).abs().max()))
            if largest > section.min_diff:
                break
        else:
            out = [name for name in out if name not in own]
            said = f"{part} is left out: none of its weights changed by more than {largest:.2g}."
            more = " Set it to 0 to take the text encoder all the same." if largest else ""
            remarks.append(Finding("extract.min_diff", said + more, severity="note"))
    return out


def _beside(job: _Job, section: Extract, squares: float, progress: Progress) -> list[str]:
    """What else differs in the denoisers, which the LoRA has no place for: norms, biases, embeddings, convolutions that are not
    asked for. `squares` are those of the changes that it has a place for."""
    base, tuned = job.base.rows["denoiser"], job.tuned.rows["denoiser"]
    taken = {f"{t.name}.weight" for name in job.names for t in job.base.layers[name] if t.part == "denoiser"}
    others = [n for n in base if n not in taken and n in tuned and base[n].shape == tuned[n].shape]
    more, num_changed = 0.0, 0
    for done, name in enumerate(others):
        progress(done, len(others), "comparing the rest")
        found = squares_of(job.tuned.tensor("denoiser", name) - job.base.tensor("denoiser", name))
        more, num_changed = more + found, num_changed + (found != 0)
    if not num_changed:
        return []
    can_have_more = section.conv_rank is None and any(map(job.base.is_spatial, job.base.layers))
    hint = " conv_rank takes the convolutions in." if can_have_more else ""
    share = more / (more + squares)
    return [
        f"Not in the LoRA, since it has no place for them: {num_changed} more tensors of the denoiser that differ",
        f"(norms, biases and the like), {share:.2%} of the energy of the denoiser's whole change.{hint}",
    ]


def _metadata(section: Extract, job: _Job, rule: str) -> dict[str, str]:
    """kohya's keys and Stability's."""
    family, prediction = job.base.base.family, job.base.base.prediction
    args = {} if section.conv_rank is None else {"conv_dim": section.conv_rank, "conv_alpha": float(section.conv_rank)}
    made = f"extracted from {Path(section.tuned).name} minus {Path(section.base).name} by {rule}"
    said = {
        "ss_v2": family == "sd2",
        "ss_base_model_version": BASE_VERSIONS[family],
        "ss_network_module": {"sd3": "networks.lora_sd3", "flux": "networks.lora_flux"}.get(family, "networks.lora"),
        "ss_network_args": json.dumps(args),
        "ss_sd_model_name": Path(section.base).name,
        "ss_output_name": section.output.stem,
        "ss_training_comment": made,
        **network_keys(section, section.rank, str(float(section.rank))),
    }
    said |= {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURES[family, prediction] + "/lora",
        "modelspec.title": section.output.stem,
        "modelspec.description": made,
    }
    return described(said)
