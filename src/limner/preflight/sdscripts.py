"""A checkout of sd-scripts that shall train: that it is one, has what it takes, and will not refuse what it is told."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from limner.config import Config
from limner.config.fields import walk
from limner.errors import Finding, printable
from limner.formats.argument_source import known_faults
from limner.formats.checkout import has_package, is_checkout, python_of, version_of
from limner.machine import Machine
from limner.preflight.records import Records
from limner.runs import home
from limner.sdscripts.assemble import Assembled, assemble
from limner.sdscripts.dataset import KEYS
from limner.sdscripts.rules import broken_rules
from limner.sdscripts.trust import untrusted

_OLDEST, _NEWEST = (0, 9), (0, 11)
"""What was read: 0.9.1 and 0.10.1."""
_TRAINER = "launch.trainer"


def check_sd_scripts(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    section = config.launch
    if section.sd_scripts is None:
        yield Finding("launch.sd_scripts", "no folder is given.", "Give the folder of sd-scripts, with train_network.py in it.")
        return
    if not is_checkout(section.sd_scripts):
        said = f"{section.sd_scripts} is no checkout of sd-scripts: it has no train_network.py beside a folder library."
        yield Finding("launch.sd_scripts", said, "Give the folder that has them; in kohya_ss it is called sd-scripts.")
        return
    yield from untrusted(section)
    yield from _python(config)
    yield from _version(config)
    yield from _unlike_limner(config, machine)
    if records.base is not None and records.base.is_pocket:
        yield Finding("model.base", "the pocket model is Limner's own; sd-scripts cannot load it.", "Choose another model.")
        return
    if machine is not None and records.base is not None and records.base.path is not None:
        yield from _arguments(assemble(config, home() / "runs" / "RUN", machine))


def _python(config: Config) -> Iterable[Finding]:
    python = python_of(config.launch)
    field = "launch.python"
    if not python.is_file():
        yield Finding(field, f"{python} does not exist.", "Give the Python of sd-scripts' virtual environment.")
    elif has_package(python, "accelerate") is False:
        said = f"{python} has no accelerate, which starts sd-scripts."
        yield Finding(field, said, "Install what requirements.txt of sd-scripts lists there, or give another Python.")


def _version(config: Config) -> Iterable[Finding]:
    assert config.launch.sd_scripts is not None
    version = version_of(config.launch.sd_scripts)
    if version is None:
        yield Finding("launch.sd_scripts", "does not say which version it is.", "", "note")
    elif not _OLDEST <= version[:2] <= _NEWEST:
        said = f"is version {'.'.join(map(str, version))}; Limner knows 0.9 to 0.10."
        yield Finding("launch.sd_scripts", said, "Update it, or watch the first steps closely.", "warning")


def _unlike_limner(config: Config, machine: Machine | None) -> Iterable[Finding]:
    """What a run does otherwise, or not at all, when sd-scripts trains it."""
    if not config.output.save_every_steps and not config.output.save_every_epochs:
        said = "sd-scripts saves a training state with a checkpoint only: a run that is stopped cannot be resumed."
        yield Finding("output.save_every_steps", said, "Set it.", "warning")
    if config.launch.num_processes > 1 and machine is not None and machine.kind(config.launch.device) == "cpu":
        yield Finding("launch.num_processes", "sd-scripts trains in one process on a CPU.", "Set it to 1.")


def _arguments(job: Assembled) -> Iterable[Finding]:
    yield Finding(_TRAINER, f"{job.words[0]} will run {job.script} of {job.checkout}.", "", "note")
    yield from job.findings
    options = _options()
    for name, fault in known_faults(job.arguments, job.known):
        value = printable(repr(job.arguments[name]), 80)
        said = f"sets {name} = {value}: {job.script} of this checkout says that it {fault}."
        if name not in job.known:
            said = f"sets {name} = {value}, which {job.script} of this checkout does not know."
        yield Finding(options.get(name, _TRAINER), said, "Leave it at its default, or update the checkout.")
    datasets = tomllib.loads(next(t for p, t in job.texts.items() if p.name == "dataset.toml"))["datasets"]
    told = dict[tuple[str, str], str]()
    for name, said, remedy in broken_rules(job.script, job.base.family, job.arguments, datasets):
        told[options.get(name, _TRAINER), f"{name} {said}"] = remedy
    for (field, said), remedy in told.items():
        yield Finding(field, said, remedy)


def _options() -> Mapping[str, Any]:
    """sd-scripts' name -> the option that sets it."""
    out = {key: f"data.{option}" for option, key in KEYS.items()}
    for option in walk():
        if option.kohya:
            out.setdefault(option.kohya, option.path)
    return out
