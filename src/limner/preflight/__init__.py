"""Everything that can be known before the start, found all at once and without importing torch.

Each check is `(Config, Machine, records) -> Iterable[Finding]`; what needs the base model or the scan gets them in records.
"""

from __future__ import annotations

from collections.abc import Callable

from limner.config import Config
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
    sdscripts,
    training,
    versions,
    word,
)  # fmt: skip
from limner.preflight.records import Check, Records

__all__ = ["Records", "examine"]

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
    model.check_family,
    training.check_preservation,
    device.check_device,
    device.check_estimate,
    training.check_prompts,
    output.check_logging,
    output.check_output,
    sdscripts.check_sd_scripts,
)


def examine(
    config: Config, machine: Machine | None, *, deep: bool = False, may_follow: Callable[[str], bool] | None = None
) -> tuple[list[Finding], Records]:
    """All findings, errors first, and what was learnt on the way. `deep` decodes every picture; links among the pictures for
    which `may_follow` is false are errors.

    Of a machine that is not known (yet), nothing is said.
    """
    records, findings = Records(deep=deep, may_follow=may_follow), []
    for check in CHECKS:
        try:
            findings += check(config, machine, records)
        except UserError as error:
            findings += error.findings
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda f: order.index(f.severity)), records
