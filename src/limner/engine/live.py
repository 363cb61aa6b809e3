"""The trainer's side of live changes: take what was asked for, record it, and make it so."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from limner import changes, disk
from limner.changes import Change
from limner.config import Config, defaults
from limner.config.prompts import Prompt, all_prompts
from limner.data.dataset import Dataset
from limner.engine import loading, paint
from limner.errors import UserError
from limner.formats.base import Base
from limner.formats.suited import require_suited
from limner.runs import Run

if TYPE_CHECKING:
    from limner.engine.training import Training


def prompts_of(config: Config, run: Run, dataset: Dataset, base: Base) -> list[Prompt]:
    """The prompts of a run; a prompt file is read from the run folder, where it was copied to before the start."""
    if config.sample.prompt_file is not None and run.prompts is not None:
        config = config.model_copy(update={"sample": config.sample.model_copy(update={"prompt_file": run.prompts})})
    return all_prompts(config, dataset.buckets.resolution, base.bucket_step_px)


def take(job: Training, step: int) -> list[Change]:
    """The changes that hold from behind `step` on: those of an earlier trainer, then what was asked for since.

    They are on the disk as events before they take effect. What cannot be made so is told in a warning. Main process only.
    """
    taken = [c for c in job.pending if c.step <= step]
    job.pending = [c for c in job.pending if c.step > step]
    config = job.config
    for change in taken:
        config = changes.changed(config, change.options)
    refused = list[str]()
    for name, text in job.run.take_changes():
        try:
            options = changes.parse(text, name)
            new = changes.changed(config, options)
            changes.require_effect(new, options)
            config = _vetted(job, new, options, step)
            taken.append(Change(step, secrets.token_hex(4), options))
        except UserError as error:
            refused += [f"a change was refused: {f.field}: {f.message} {f.remedy}".strip() for f in error.findings]
    if taken or refused:
        job.journal.flush()
    for words in refused:
        job.journal.event("warning", message=words)
    for change in taken:
        job.journal.event("change", step=step, id=change.id, options=change.options)
    if taken:
        disk.fsync(job.run.path / "events.jsonl")
    return taken


def _vetted(job: Training, config: Config, options: changes.Options, step: int) -> Config:
    """The config itself. Raises UserError for what the schema cannot know."""
    if (steps := total_steps(config, job.dataset)) < step:
        raise changes.too_few(steps, step)
    if any(name.startswith("sample.") for name in options):
        require_suited(prompts_of(config, job.run, job.dataset, job.family.base), job.family.base)
    return config


def total_steps(config: Config, dataset: Dataset) -> int:
    """The steps of a run whose config may have been changed."""
    if config.train.steps is not None:
        return config.train.steps
    return dataset.order.steps(config.train.epochs) if config.train.epochs is not None else dataset.total_steps


def apply(job: Training, step: int, taken: Sequence[Change]) -> None:
    """Make changes so; in all processes alike."""
    names = {name for change in taken for name in change.options}
    config, base = job.config, job.family.base
    for change in taken:
        config = changes.changed(config, change.options)
    job.config = config
    job.dataset = replace(job.dataset, total_steps=total_steps(config, job.dataset))
    if names & {"optimizer.lr", "optimizer.text_encoder_lr"}:
        job.learning_rate = defaults.learning_rate(config, base.is_pocket)
        groups = job.adapter.parameter_groups(config.optimizer, job.learning_rate)
        rates = {group["name"]: group["lr"] for group in groups}
        for group in job.optimizer.param_groups:
            group["base_lr"] = rates[group["name"]]
    if job.facts:
        rate = job.learning_rate
        job.facts |= {"lr": rate, "text_encoder_lr": defaults.text_encoder_rate(config.optimizer, rate)}
        job.facts |= {"total_steps": job.dataset.total_steps, "num_epochs": job.dataset.num_epochs}
    if any(name.startswith("sample.") for name in names):
        _take_prompts(job)
    job.journal.say(progress=(step, job.dataset.total_steps), steps=job.dataset.total_steps)


def _take_prompts(job: Training) -> None:
    family, runtime = job.family, job.runtime
    before, job.prompts = job.prompts, prompts_of(job.config, job.run, job.dataset, family.base)
    if job.prompts == before:
        return  # another cadence is no reason to bring a text encoder back
    job.encoded_prompts = []
    if job.samples.trains_text:
        return  # encoded anew for each painting
    with loading.lent(family, "text", runtime.dtype, runtime.device, job.config.model):
        job.encoded_prompts = paint.encode_prompts(family, runtime, job.prompts)
