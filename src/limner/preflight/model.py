"""The base model: what it is, where its parts lie, whether it suits what is asked of it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from limner.config import Config
from limner.errors import Finding
from limner.formats.base import T5_SOURCE, base_of
from limner.formats.known import FAMILIES
from limner.formats.single import is_pickled
from limner.formats.suited import unsuited
from limner.machine import Machine
from limner.preflight.records import Records


def check_base(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    section = config.model
    if section.config is not None and not os.path.isdir(section.config):
        yield Finding("model.config", f"{section.config} is not a folder.", "Give a diffusers folder with configuration files.")
        return
    records.base = base = base_of(section)
    if base.path is None:
        yield Finding(
            "model.base", f"{section.base} is not on this machine; it will be fetched from the Hugging Face hub.", "", "note"
        )
    if section.revision is not None and (base.layout == "file" or Path(section.base).exists()):
        yield Finding("model.revision", "has no effect on a local model.", "Remove it.", "warning")
    if section.config is not None and base.layout == "folder":
        yield Finding("model.config", "has no effect on a diffusers folder.", "Remove it.", "warning")
    wanted = config.objective.prediction
    if not base.is_prediction_known and wanted is None:
        said = f"{section.base} does not say what it predicts; {base.prediction} is assumed."
        remedy = 'Set "epsilon" or "v_prediction"; with the wrong one nothing is learnt.'
        yield Finding("objective.prediction", said, remedy, "warning")
    elif wanted is not None and base.is_prediction_known and base.prediction != "flow" and wanted != base.prediction:
        said = f"{wanted} is asked for, the model says {base.prediction}."
        yield Finding("objective.prediction", said, "Remove the line unless the model's own setting is wrong.", "warning")


def check_parts(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """Which files the base model's parts are taken from."""
    del machine
    section, base = config.model, records.base
    if base is None or base.path is None:
        return
    if any(is_pickled(p) for p in (base.path, *base.others.values())):
        said = "a pickled file can hold code: Limner reads its numbers and runs none of it, other programs may."
        yield Finding("model.base", said, "Use the .safetensors version where there is one.", "warning")
    for name, path in base.others.items():
        option = f"model.{FAMILIES[base.family].parts[name].option}"
        if getattr(section, option.removeprefix("model.")) is None:
            yield Finding(option, f"{path} is taken, which lies beside the model.", "", "note")
    for part in (FAMILIES[base.family].parts[name] for name in base.absent):
        said = f"no {part.title} was found; the model is trained without it."
        severity = "note" if part.option == "t5" else "warning"
        yield Finding(f"model.{part.option}", said, "Give its file to train with it.", severity)
    if base.t5 and base.t5_tokenizer is None:
        said = f"T5's tokenizer is not on this machine; it will be fetched from the Hugging Face hub ({T5_SOURCE})."
        yield Finding("model.t5_tokenizer", said, "", "note")
    if section.t5_tokenizer is not None and not base.t5:
        yield Finding("model.t5_tokenizer", "has no effect: this model has no T5.", "Remove it.", "warning")


def check_family(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    if records.base is not None and records.base.path is not None:
        yield from unsuited(config, records.base)
