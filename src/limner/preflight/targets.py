"""A run that is to be trained elsewhere: that what submits it is installed, the other side answers, and files get there."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from importlib.util import find_spec

from limner.config import Config, Launch
from limner.errors import Finding
from limner.machine import Machine
from limner.preflight.records import Records
from limner.targets.asked import address, partition, sbatch_options
from limner.targets.package import is_too_much, sent_paths, too_much

_TARGET = "launch.target"
_SECONDS = 2.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PACKAGES = {"ray": ("ray", "ray"), "slurm": ("submitit", "slurm")}
"""Target -> the package that it needs, and the extra that brings it."""


def check_target(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    del machine, records
    section = config.launch
    if section.target == "local":
        return
    if section.trainer != "limner":
        yield Finding(_TARGET, "sd-scripts trains on this machine only.", 'Set it to "local", or launch.trainer = "limner".')
        return
    if section.num_machines > 1:
        said = f"a job of {section.target} trains on one machine."
        yield Finding("launch.num_machines", said, 'Set it to 1, or launch.target = "local" on each of the machines.')
    if section.target == "ray":
        address(section)
    else:
        partition(section)
        sbatch_options(section)
    package, extra = _PACKAGES[section.target]
    if find_spec(package) is None:
        said = f"{package} is not installed here, which submits jobs to {section.target}."
        yield Finding(_TARGET, said, f"Install it: pip install limner[{extra}]")
    elif section.target == "ray":
        yield from _server(section)
    elif section.slurm_cluster == "slurm" and shutil.which("sbatch") is None:
        yield Finding(_TARGET, "there is no sbatch here.", "Start Limner on a machine from which jobs are submitted.")
    yield from _resources(section)
    yield from _reach(config)
    said = "the machine that will train is not known here: whether it has the device, the memory and the bf16 is not checked."
    yield Finding(_TARGET, said, "", "note")


def _server(section: Launch) -> Iterable[Finding]:
    """Whether Ray's dashboard answers, and how safe it is to talk to it."""
    request = urllib.request.Request(f"{address(section)}/api/version")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):  # it wants a token, which Ray's own client sends
            yield Finding("launch.ray_address", f"{section.ray_address} answers {error.code}.", "Give that of Ray's dashboard.")
    except (OSError, ValueError) as error:
        said = f"no Ray dashboard answers at {section.ray_address} ({getattr(error, 'reason', error)})."
        yield Finding("launch.ray_address", said, "Start one, or open the tunnel to it; docs/other-machines.md says how.")
    if urllib.parse.urlsplit(section.ray_address).hostname not in _LOOPBACK:
        said = f"what is sent to {section.ray_address}, pictures among it, can be read by whoever is in between."
        remedy = "Reach it through an SSH tunnel, if that network is not yours."
        yield Finding("launch.ray_address", said, remedy, "warning")


def _resources(section: Launch) -> Iterable[Finding]:
    gpus = section.job_gpus
    if gpus is not None and section.device == "cpu" and gpus:
        yield Finding("launch.job_gpus", f'{gpus} asked for, but launch.device = "cpu" uses none.', "Set it to 0.", "warning")
    elif gpus is not None and section.device == "cuda" and gpus < section.num_processes:
        yield Finding("launch.job_gpus", f"{gpus} for {section.num_processes} processes.", "Ask for one for each process.")


def _reach(config: Config) -> Iterable[Finding]:
    """Whether the job will find what it needs, as far as it can be told here."""
    section = config.launch
    if (shared := section.shared_path) is not None:
        if not shared.is_absolute() or not shared.is_dir():
            said = f"{shared} is no folder here; the job's machine must see it under the same, full path."
            yield Finding("launch.shared_path", said, "Create it on the file system that both see.")
        return
    if section.target == "slurm":
        return
    if config.output.path is not None:
        said = "is a folder of this machine; the finished files come into the run's folder."
        yield Finding("output.path", said, "Remove it, or set launch.shared_path.", "warning")
    if section.upload != "run" and config.data.subsets is not None:
        said = "the folders that it names are not sent to Ray."
        yield Finding("data.subsets", said, 'Set launch.shared_path, or launch.upload = "run" if all lies there.')
    if is_too_much(path for _, path in sent_paths(config)):
        yield from too_much().findings
