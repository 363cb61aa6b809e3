"""Where results go: names, folders, space, trackers."""

from __future__ import annotations

import netrc
import os
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from limner import disk, runs, space
from limner.config import Config
from limner.errors import Finding
from limner.formats.embedding_file import file_name
from limner.machine import Machine
from limner.preflight.packages import is_installed
from limner.preflight.records import Records

_NOT_EVERYWHERE = set('/\\:*?"<>|$`')
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in "123456789\u00b9\u00b2\u00b3")}
"""Windows gives no file such a name, whatever its ending; its digits may stand high."""
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Control characters, halves of characters, ends of lines."""
_TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
"""Marks that turn the direction of what follows, so that a name reads as another. Joiners are part of many scripts."""


def check_logging(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """Trackers that are asked for: whether they are installed, and would be let in."""
    del machine, records
    section = config.logging
    if not section.trackers:
        return
    for name in section.trackers:
        if not is_installed(config, name):
            yield Finding("logging.trackers", f"{name} is not installed.", f'Run: pip install "limner[{name}]"')
    if "wandb" in section.trackers and not _wandb_has_key():
        said = "wandb has no key and is not offline."
        remedy = (
            "Set WANDB_API_KEY (and WANDB_BASE_URL for a server of your own), run `wandb login`, or set WANDB_MODE=offline."
        )
        yield Finding("logging.trackers", said, remedy)
    if not section.project.strip() or len(section.project) > 128 or set(section.project) & set("/\\#?%:\n\t"):
        said = f"{section.project!r} cannot be a project's name."
        yield Finding("logging.project", said, "Use 1 to 128 characters, none of them / \\ # ? % :")


def _wandb_has_key() -> bool:
    """Whether wandb needs no key, or would find one where it looks for it."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    logins = os.environ.get("NETRC") or "~/.netrc"
    try:
        return netrc.netrc(Path(logins).expanduser()).authenticators(host) is not None
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False


def check_output(config: Config, machine: Machine | None, records: Records) -> Iterable[Finding]:
    """Names that work everywhere, folders that can be written, space for what will be."""
    del machine
    name = config.output.name
    if not name.strip() or name in (".", "..") or name != name.strip() or name.endswith("."):
        yield Finding("output.name", f"{name!r} cannot be a file name.", "Use letters and digits.")
    elif (
        any(c in _NOT_EVERYWHERE | _TURNING or unicodedata.category(c) in _UNSEEN for c in name)
        or name.split(".")[0].lower() in _RESERVED
        or name.startswith((".", "-"))
    ):
        yield Finding("output.name", f"{name!r} cannot be a file name on every system.", "Use letters, digits, - and _.")
    elif len(os.fsencode(name)) > 200:
        yield Finding("output.name", f"is {len(os.fsencode(name))} bytes long.", "Use at most 200 bytes.")
    yield from _already_there(config)
    for field, folder in (
        ("output.path", config.output.path),
        ("memory.cache_path", config.memory.cache_path),
        ("LIMNER_HOME", runs.home()),
    ):
        if folder is not None:
            yield from writable(field, folder)
    yield from _space(config, records)


def _space(config: Config, records: Records) -> Iterable[Finding]:
    """That each disk has room for what will be written there."""
    base, pictures = records.base, [*(records.scan.pictures if records.scan else ()), *records.classes, *records.to_paint]
    if base is None or base.path is None:
        return
    length = (records.dataset.total_steps, records.dataset.num_epochs) if records.dataset is not None else (0, 0)
    fields = {config.memory.cache_path: "memory.cache_path", config.output.path: "output.path"}
    for folder, needed in space.on_disks(space.by_place(config, space.needs(config, base, pictures), *length)).items():
        if (free := disk.free_bytes(folder) >> 20) < needed:
            said = f"{free} MiB are free, about {needed} MiB are needed on the disk of {folder}."
            yield Finding(fields.get(folder, "output.path"), said, "Free some space, or choose another disk.")


def _already_there(config: Config) -> Iterable[Finding]:
    """What lies where the finished files shall go, if they go to a folder of the user's."""
    if config.output.path is None:
        return
    makes_folder = config.adapter.trains_base and config.output.layout == "diffusers"
    name = config.output.name
    yield from _in_the_way(config.output.path / (name if makes_folder else f"{name}.safetensors"), makes_folder)
    if config.adapter.kind != "embedding" and config.embedding.token is not None:
        yield from _in_the_way(config.output.path / file_name(name), False)


def _in_the_way(target: Path, makes_folder: bool) -> Iterable[Finding]:
    if not os.path.lexists(target):
        return
    if target.is_dir() and (not makes_folder or not (target / disk.MANIFEST).is_file()):
        yield Finding("output.name", f"{target} is a folder that Limner did not write.", "Choose another name.")
    else:
        yield Finding("output.name", f"{target} exists and will be replaced.", "Choose another name to keep it.", "warning")


def writable(field: str, folder: Path) -> Iterable[Finding]:
    """That files can be put into a folder, which need not be there yet."""
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))  # the rest is made when it is needed
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=disk.TEMPORARY):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        yield Finding(field, f"{folder} cannot be written ({reason}).", "Choose another folder, or change its permissions.")
