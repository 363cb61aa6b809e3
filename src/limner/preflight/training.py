"""What is trained, how long, and what is painted on the way: options that contradict each other, or have no effect."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from limner.config import Config
from limner.config.fields import applies, condition_words, values
from limner.config.prompts import all_prompts
from limner.errors import Finding
from limner.formats.suited import unsuited_prompts
from limner.machine import Machine
from limner.preflight.records import Records


def check_length(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    if config.train.steps is not None and config.train.epochs is not None:
        yield Finding("train.epochs", "both steps and epochs are given.", "Remove one of them.")
    if records.dataset is None:
        return
    total = records.dataset.total_steps
    epochs = records.dataset.order.epoch_of(total)
    for field, every, length, unit in (
        ("output.save_every_steps", config.output.save_every_steps, total, "steps"),
        ("sample.every_steps", config.sample.every_steps, total, "steps"),
        ("validation.every_steps", config.validation.every_steps, total, "steps"),
        ("validation.every_epochs", config.validation.every_epochs, epochs, "epochs"),
        ("output.save_every_epochs", config.output.save_every_epochs, epochs, "epochs"),
        ("sample.every_epochs", config.sample.every_epochs, epochs, "epochs"),
    ):
        if every is not None and every > length:
            said = f"{every} is more than the {length} {unit} of the run, so it never happens."
            yield Finding(field, said, "Make it smaller.", "warning")


def check_timesteps(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine, records
    least, most = config.objective.least_timestep, config.objective.most_timestep
    if least >= most:
        said = f"there is no timestep from {least} to below {most}."
        yield Finding("objective.least_timestep", said, "Make it smaller than objective.most_timestep.")


def check_idle(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """What is set but has no effect, because what it depends on is not (see `when` in the schema)."""
    del machine, records
    for option, value in values(config):
        if value != option.default and not applies(option, config):
            said = f"has no effect unless {condition_words(option.when)}."
            yield Finding(option.path, said, "Change that, or remove this.", "warning")


def check_adapter(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine, records
    adapter = config.adapter
    if not adapter.denoiser and not adapter.text_encoder and adapter.kind != "embedding":
        yield Finding("adapter.denoiser", "nothing is trained.", "Set adapter.denoiser or adapter.text_encoder to true.")
    if config.trains_text and config.memory.cache_text:
        what = "the text encoder is trained" if adapter.text_encoder else "a word is learnt"
        said = f"captions are not cached while {what}."
        yield Finding("memory.cache_text", said, "", "note")


def check_preservation(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine, records
    if config.objective.preserve == "off":
        return
    if config.adapter.trains_base:
        said = "needs the base model beside the trained one, and the base model itself is trained."
        yield Finding("objective.preserve", said, 'Set it to "off", or adapter.kind = "lora".')
    if config.adapter.text_encoder:
        yield Finding(
            "objective.preserve", "does not work while the text encoder is trained.", "Set adapter.text_encoder = false."
        )
    if not config.data.trigger:
        yield Finding("data.trigger", "is needed by objective.preserve.", "Set it to the word that the captions use.")
    if not config.data.class_words:
        yield Finding("data.class_words", "are needed by objective.preserve.", 'Set them, for example ["dog"] for your dog.')


def check_prompts(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine
    section = config.sample
    resolution, step = (records.base.resolution_px, records.base.bucket_step_px) if records.base else (512, 64)
    prompts = all_prompts(config, config.data.resolution or resolution, step)
    if records.base is not None and records.base.path is not None:
        yield from islice(unsuited_prompts(prompts, records.base, section), 20)
    asked = section.every_steps is not None or section.every_epochs is not None or section.at_start
    if asked and not prompts:
        yield Finding(
            "sample.prompts", "pictures are to be painted, but there is no prompt.", 'Set sample.prompts = ["..."].', "warning"
        )
