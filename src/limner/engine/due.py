"""What is due behind a step, and what of it is there already when a run is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limner.engine.training import Training


def is_due(job: Training, step: int, every_steps: int | None, every_epochs: int | None) -> bool:
    """Whether `step` (just finished) completes an interval given in steps or in epochs."""
    if every_steps is not None and step % every_steps == 0:
        return True
    if every_epochs is None:
        return False
    order = job.dataset.order
    return order.epoch_of(step) // every_epochs > order.epoch_of(step - 1) // every_epochs


def is_checkpoint_due(job: Training, step: int) -> bool:
    output = job.config.output
    return is_due(job, step, output.save_every_steps, output.save_every_epochs)


def is_sample_due(job: Training, step: int) -> bool:
    section = job.config.sample
    if step == 0:
        return section.at_start
    return step == job.dataset.total_steps or is_due(job, step, section.every_steps, section.every_epochs)


def is_validation_due(job: Training, step: int) -> bool:
    section = job.config.validation
    if job.validation is None or step in (0, job.dataset.total_steps):
        return job.validation is not None
    is_given = section.every_steps is not None or section.every_epochs is not None
    return is_due(job, step, section.every_steps, section.every_epochs if is_given else 1)


def has_validation(job: Training, step: int) -> bool:
    """Whether this step's validation loss was noted, before the run was stopped or killed there."""
    return any(e.get("step") == step for e in job.run.history("validation"))


def has_samples(job: Training, step: int) -> bool:
    """Whether this step's pictures were all painted, before the run was stopped or killed there."""
    return not job.prompts or sample_path(job, step, len(job.prompts) - 1).exists()


def sample_path(job: Training, step: int, number: int) -> Path:
    return job.run.samples / f"step-{step:08d}_{number:02d}.png"
