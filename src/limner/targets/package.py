"""The folder that a job gets: the run's configuration as it holds there, what the run has done so far, and files sent along."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from limner import disk
from limner.config import Config
from limner.config import files as config_files
from limner.config.base import files_with_strengths
from limner.config.fields import Option, values, walk
from limner.errors import UserError, wrong
from limner.runs import Run, State

LIMIT_MIB = 100
"""What Ray's dashboard takes in one request."""
_INPUTS = "inputs"
_SENT = ("data", "model", "adapter", "objective", "embedding")
"""The sections whose paths are read from; not those that say where something is written."""
_BUILT_IN = ("pocket", "pocket-flow")
_OF_TARGETS = [o.name for o in walk() if o.path == "launch.target" or (o.section == "launch" and "launch.target" in o.when)]
"""What says where a run is trained, and means nothing there."""


def sent_paths(config: Config) -> list[tuple[Option, Path]]:
    """(option, path) of all that is sent along, as `launch.upload` says. Raises UserError where a text should be a path."""
    if config.launch.upload == "run":
        return []
    sections = ("data",) if config.launch.upload == "pictures" else _SENT
    return [(option, path) for option, value in values(config) if option.section in sections for path in _paths(option, value)]


def _paths(option: Option, value: Any) -> list[Path]:
    if isinstance(value, Path):
        return [value]
    if option.holds_files and isinstance(value, tuple):
        return [path for path, _ in files_with_strengths(value, option.path)]
    if option.holds_files and isinstance(value, str) and value not in _BUILT_IN and Path(value).expanduser().exists():
        return [Path(value).expanduser()]
    return []


def _placed(config: Config, is_sent: bool) -> tuple[Config, dict[str, Path]]:
    """The configuration as it holds in the job's folder, and what is sent: place in the folder -> path here."""
    raw = config.model_dump(mode="json", exclude_none=True)
    for name in _OF_TARGETS:
        raw["launch"].pop(name, None)
    sent = dict[str, Path]()
    if is_sent:
        raw["output"].pop("path", None)
        places = dict[Path, str]()
        for _, path in sent_paths(config):
            places.setdefault(path, f"{_INPUTS}/{len(places)}/{path.name}")
        sent = {place: path for path, place in places.items()}
        for option, value in values(config):
            if found := [path for path in _paths(option, value) if path in places]:
                raw[option.section][option.name] = _text(option, value, [places[path] for path in found])
    return config_files.build(raw, {}), sent


def _text(option: Option, value: Any, places: list[str]) -> Any:
    if not isinstance(value, tuple):
        return places[0]
    strengths = [strength for _, strength in files_with_strengths(value, option.path)]
    return [f"{place} @ {strength:g}" for place, strength in zip(places, strengths, strict=True)]


def prepare(run: Run, config: Config, folder: Path, *, is_sent: bool) -> dict[str, Path]:
    """Make a job's folder of a run's, or bring one that it has used before up to date; what is to be sent along.

    The job begins with the run's events and its newest training state, unless the folder has one.
    """
    there, sent = _placed(config, is_sent)
    for name in ("samples", "checkpoints", "states", "control"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    disk.write_text(folder / "config.toml", config_files.render(there))
    for path in [run.path / "events.jsonl", *run.path.glob("prompts.*")]:
        if path.exists():
            shutil.copyfile(path, folder / path.name)
    for name in ("exit.json", "log.txt"):
        (folder / name).unlink(missing_ok=True)
    job = Run(folder)
    job.drop_requests(before=float("inf"))
    if not any(job.states.glob("step-*")):
        for state in run.states.glob("step-*"):
            shutil.copytree(state, job.states / state.name, copy_function=_link)
    before = run.state()
    job.write_state(State("queued", step=before.step, steps=before.steps))
    return sent


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def is_too_much(paths: Iterable[Path]) -> bool:
    """Whether files and folders together are more than Ray takes. Looks no further than it must: folders may be huge."""
    total = 0
    for path in dict.fromkeys(paths):
        for file in _files(path):
            total += file.stat().st_size
            if total > LIMIT_MIB << 20:
                return True
    return False


def _files(path: Path) -> Iterator[Path]:
    return (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else iter([path] if path.is_file() else [])


def pack(folder: Path, sent: dict[str, Path], archive: Path) -> None:
    """A zip of the job's folder with what is sent along. Raises UserError if it is larger than Ray takes."""
    if is_too_much([folder, *sent.values()]):
        raise too_much()
    # pictures, models and states hardly become smaller
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        for place, path in {"": folder, **sent}.items():
            for file in _files(path):
                inner = file.relative_to(path).as_posix() if path.is_dir() else ""
                out.write(file, "/".join(filter(None, (place, inner))))


def too_much() -> UserError:
    return wrong(
        "launch.upload",
        f"more than {LIMIT_MIB} MiB would be sent to Ray, whose dashboard takes no more.",
        'Set launch.shared_path, or launch.upload = "run" if all lies there.',
    )
