"""Everything that can be known before the start, found all at once and without importing torch.

Each check is `(Config, Machine, records) -> Iterable[Finding]`; what needs the base model or the scan gets them in records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from limner.config import Config
from limner.data.scan import scan
from limner.errors import Finding, UserError
from limner.machine import Machine
from limner.preflight import (
    adapters,
    beside,
    captions,
    device,
    model,
    optimizer,
    output,
    pictures,
    processes,
    speed,
    targets,
    training,
    versions,
    word,
)  # fmt: skip
from limner.preflight.records import Check, Look, Records

__all__ = ["Records", "examine"]


def _check_sd_scripts(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    if config.launch.trainer != "sd-scripts":
        return ()
    from limner.preflight.sdscripts import check_sd_scripts  # for few, and all others would wait for it

    return check_sd_scripts(config, machine, records)


CHECKS: tuple[Check, ...] = (
    model.check_base,
    model.check_parts,
    pictures.check_pictures,
    beside.check_class_pictures,
    beside.check_held_out,
    pictures.check_depth,
    pictures.check_buckets,
    captions.check_captions,
    versions.check_cuts,
    versions.check_masks,
    training.check_length,
    training.check_timesteps,
    optimizer.check_optimizer,
    optimizer.check_one_by_one,
    optimizer.check_schedule,
    training.check_idle,
    training.check_adapter,
    adapters.check_layers,
    adapters.check_files,
    word.check_word,
    device.check_memory,
    speed.check_speed,
    model.check_family,
    training.check_preservation,
    device.check_device,
    processes.check_processes,
    device.check_estimate,
    training.check_prompts,
    output.check_logging,
    output.check_output,
    _check_sd_scripts,
    targets.check_target,
)


def examine(
    config: Config,
    machine: Machine | None,
    *,
    deep: bool = False,
    may_follow: Callable[[str], bool] | None = None,
    look: Look = scan,
) -> tuple[list[Finding], Records]:
    """All findings, errors first, and what was learnt on the way. `deep` decodes every picture; links among the pictures for
    which `may_follow` is false are errors. `look` reads the folders.

    Of a machine that is not known (yet), nothing is said; nor of this one, if another trains.
    """
    if config.launch.target != "local":
        machine = None
    records, findings = Records(deep=deep, may_follow=may_follow, look=look), []
    for check in CHECKS:
        try:
            findings += check(config, machine, records)
        except UserError as error:
            findings += error.findings
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda f: order.index(f.severity)), records
