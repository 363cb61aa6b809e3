"""What the page is told about runs: the list in brief, one run in full. Only what changed since the last look is sent."""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from limner import changes, disk, launch, queue, runner, runs
from limner.changes import Change
from limner.config import Config
from limner.config import files as config_files
from limner.config.fields import walk
from limner.errors import UserError
from limner.runs import LIVE, Run, State, written_at
from limner.web import places
from limner.web.curves import SPEED, Curves, CurvesOfRuns

_FRESH_SECONDS = 0.3
"""However many pages watch, the folders are looked at no more often than this."""
_TAIL_BYTES = 8000
_SAMPLE = re.compile(r"step-(\d{1,12})_(\d{1,4})\.png")

Brief = dict[str, Any]


def sample_names(run: Run) -> list[str]:
    """The names of a run's samples, by step and prompt."""
    return sorted(name for name in _names(run.samples) if _SAMPLE.fullmatch(name))


def checkpoint_files(run: Run, config: Config | None, written: dict[str, int]) -> dict[str, Path]:
    """The finished files of a run that are there, by name. In a folder that runs share, only what this one says it wrote."""
    shared = config.output.path if config is not None else None
    names = set(_names(shared or run.checkpoints))
    return {n: (shared or run.checkpoints) / n for n in names if n in written or (shared is None and not n.startswith("."))}


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [e.name for e in entries if not e.is_symlink() and places.can_be_named(e.name)]
    return []


def _stamp(path: Path) -> int:
    return written_at(path) or 0


def config_of(run: Run) -> Config | None:
    """A run's config; None if its file was damaged, which the page then says."""
    with contextlib.suppress(UserError):
        return run.config()
    return None


@dataclass
class _Known:
    """What was read of a run, and when."""

    stamp: tuple[int, int]
    state: State
    brief: Brief
    changed: int = 0


@dataclass
class Overview:
    """All runs in brief."""

    curves: CurvesOfRuns
    _known: dict[str, _Known] = field(default_factory=dict)
    _order: list[str] = field(default_factory=list)
    _waiting: list[str] = field(default_factory=list)
    _order_changed: int = 0
    _changes: int = 0
    _looked: float = 0.0
    _token: str = field(default_factory=lambda: secrets.token_hex(4))
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, since: str = "") -> dict[str, Any]:
        """The runs that changed since an earlier answer's version, all for any other text; the order where it changed."""
        with self._turn:
            if time.monotonic() - self._looked > _FRESH_SECONDS:
                self._look()
                self._looked = time.monotonic()
            token, _, count = since.partition("-")
            after = int(count) if token == self._token and count.isdecimal() and len(count) < 18 else -1
            out: dict[str, Any] = {"version": f"{self._token}-{self._changes}", "queue": self._waiting}
            out["runs"] = {name: known.brief for name, known in self._known.items() if known.changed > after}
            return out | ({"order": self._order} if self._order_changed > after else {})

    def brief(self, run: Run) -> Brief:
        """One run as in the list, as it is now."""
        with self._turn:
            return self._brief_of(run).brief

    def forget(self) -> None:
        """Look anew at the next question: something was changed just now."""
        self._looked = 0.0

    def _look(self) -> None:
        folder = runs.home() / "runs"
        # of a folder that may not be entered, Path.is_file raises
        found = [n for n in _names(folder) if n in self._known or os.path.isfile(folder / n / "config.toml")]
        for name in self._known.keys() - set(found):
            del self._known[name]
        for name in found:
            self._brief_of(Run(folder / name))
        order = sorted(self._known, key=lambda n: (self._known[n].brief["created"], n), reverse=True)
        waits = [name for name, known in self._known.items() if known.state.status == "waiting"]
        self._waiting = [n for n in _in_order(waits) if n in self._known] if waits else []
        if order != self._order:
            self._changes += 1
            self._order, self._order_changed = order, self._changes

    def _brief_of(self, run: Run) -> _Known:
        """What is known of a run, read again if its state was written, its end noted, or it may have died."""
        stamp, before = (_stamp(run.path / "state.json"), _stamp(run.path / "exit.json")), self._known.get(run.id)
        if before is not None and before.stamp == stamp and before.state.status not in LIVE:
            return before
        state = run.state()
        fixed = before.brief if before is not None else _fixed(run)
        brief = {**fixed, **self._moving(run, state)}
        if brief.get("device") is None or brief.get("family") is None:
            brief |= _planned(run)
        changed = before.changed if before is not None else -1
        if before is None or brief != before.brief:
            self._changes += 1
            changed = self._changes
        self._known[run.id] = _Known(stamp, state, brief, changed)
        return self._known[run.id]

    def _moving(self, run: Run, state: State) -> Brief:
        samples = sample_names(run)
        out: Brief = {
            "status": state.status,
            "phase": state.phase,
            "progress": state.progress,
            "step": state.step,
            "steps": state.steps,
            "error": state.error,
            "sample": samples[-1] if samples else None,
            "asked": state.status in LIVE and run.is_asked_to_stop(),
            "speed": None,
            "seconds_left": None,
        }
        if state.status in LIVE and state.step and (speed := self.curves.of(run).pace()):
            out |= {"speed": round(speed, 4), "seconds_left": max(0, round((state.steps - state.step) / speed))}
        return out


def _fixed(run: Run) -> Brief:
    """What never changes about a run."""
    config = config_of(run)
    out: Brief = {"id": run.id, "created": _stamp(run.path / "config.toml") / 1e9}
    if config is None:
        return out | {"name": run.id, "kind": "", "family": None, "device": None}
    return out | {
        "name": config.output.name,
        "kind": config.adapter.kind,
        "family": config.model.family,
        "device": config.launch.device,
    }


def _in_order(waits: list[str]) -> list[str]:
    """The waiting runs in the queue's order; where its table cannot be used, which the notices say, by their names."""
    try:
        return queue.waiting()
    except (UserError, OSError):
        return sorted(waits)


def _planned(run: Run) -> Brief:
    plan = run.plan()
    return {k: plan[k] for k in ("family", "device") if isinstance(plan.get(k), str)}


# --- one run in full --------------------------------------------------------------------------------------------------


def actions(run: Run, state: State, config: Config | None, *, asked: bool) -> list[str]:
    """What can be done with a run now, of the POST routes' names. `asked`: a stop is pending already."""
    again = ["duplicate"] if config is not None else []
    if state.status in LIVE:
        if config is not None and config.launch.trainer != "limner":  # it takes no requests while it trains
            return [*([] if asked else ["stop"]), "stop-now", *again]
        paints = config is not None and bool(config.sample.prompts or run.prompts)
        changes = ["change"] if config is not None else []
        return [*([] if asked else ["stop", *(["sample"] if paints else []), "save", *changes]), "stop-now", *again]
    if state.status == "waiting":
        return ["stop", *again]
    return [*(["resume"] if state.status != "done" and config is not None else []), *again, "delete"]


def resume_step(run: Run) -> int | None:
    """The step of the newest training state, None if there is none. Whether it is whole, the trainer will see."""
    steps = [int(found[1]) for name in _names(run.states) if (found := re.fullmatch(r"step-(\d{1,12})", name))]
    return max(steps, default=None)


@cache
def _usual() -> dict[str, str]:
    """Every option's default, as typed."""
    return {option.path: config_files.as_typed(option, option.default) for option in reversed(list(walk()))}


def differences(config: Config) -> list[dict[str, str]]:
    """The options that are not at their defaults: field, value, default, as typed; "" is what was not given."""
    return [{"field": k, "value": v, "default": _usual()[k]} for k, v in config_files.overrides_of(config).items()]


def compared(one: Config, other: Config) -> list[dict[str, str]]:
    """The options in which two configs differ: field, value, other, as typed."""
    mine, theirs = config_files.overrides_of(one), config_files.overrides_of(other)
    names = dict.fromkeys([*mine, *theirs])
    rows = [{"field": n, "value": mine.get(n, _usual()[n]), "other": theirs.get(n, _usual()[n])} for n in names]
    return [row for row in rows if row["value"] != row["other"]]


def full(run: Run, brief: Brief, curves: CurvesOfRuns, since: str = "") -> dict[str, Any]:
    """Everything about one run. `since` is an earlier answer's version: parts that are as they were then are left out."""
    known = curves.of(run)
    config = config_of(run)
    now = changed(config, known.changes)
    state = run.state()
    config_stamp = max(_stamp(run.path / name) for name in ("config.toml", "plan.json", "command.json"))
    parts: dict[str, tuple[object, Callable[[], Any]]] = {  # what a part depends on, and how it is made
        "config": (
            f"{config_stamp}.{len(known.changes)}",
            lambda: _config_part(run, config) | {"changes": [{"step": c.step, "options": c.options} for c in known.changes]},
        ),
        "samples": (
            f"{_stamp(run.samples)}.{len(known.prompts)}",
            lambda: {"names": sample_names(run), "prompts": known.prompts},
        ),
        "checkpoints": (
            f"{len(known.checkpoints)}.{state.step}.{state.status}",
            lambda: _checkpoints_part(run, config, known.checkpoints),
        ),
        "log": (_stamp(run.log), lambda: {"tail": run.tail(_TAIL_BYTES)}),
    }
    before = since.split("-")
    out = {
        **brief,
        "actions": actions(run, state, now, asked=brief["asked"]),
        "now": _now(run, state, now) if state.status in LIVE and now is not None else None,
        "validation": _last(known.validation.columns.get("loss")),
        "resume_step": resume_step(run),
        "memory": _last(known.memory.columns.get("device_mib")) or _last(known.memory.columns.get("memory_mib")),
        "meter": _meter(known),
        "warnings": [*_why_waiting(state), *known.warnings],
        "version": "-".join(str(stamp) for stamp, _ in parts.values()),
    }
    for number, (name, (stamp, make)) in enumerate(parts.items()):
        if len(before) != len(parts) or before[number] != str(stamp):
            out[name] = make()
    return out


def _why_waiting(state: State) -> list[str]:
    """What keeps a waiting run from being started, other than those before it."""
    return [said for said in (state.error, runner.fault()) if said] if state.status == "waiting" else []


def changed(config: Config | None, taken: Sequence[Change]) -> Config | None:
    """The config with a run's live changes; as far as they are understood."""
    if config is None:
        return None
    for change in taken:
        with contextlib.suppress(UserError):
            config = changes.changed(config, change.options)
    return config


def _now(run: Run, state: State, config: Config) -> dict[str, Any]:
    """What holds now of the options that the page changes, as typed."""
    lr, every = config.optimizer.lr, config.sample.every_steps
    planned = run.plan().get("lr")
    lr = planned if lr is None and isinstance(planned, int | float) else lr
    return {
        "optimizer.lr": "" if lr is None else f"{lr:g}",
        "train.steps": str(state.steps or config.train.steps or ""),
        "sample.every_steps": "" if every is None else str(every),
        "sample.prompts": list(config.sample.prompts),
    }


def _meter(known: Curves) -> dict[str, Any] | None:
    """What the last report of speed says: its numbers, None for those that it lacks, and its words."""
    if not len(known.speed):
        return None
    numbers = {name: known.speed.columns.get(name, [math.nan])[-1] for name in SPEED}
    return {name: None if math.isnan(value) else value for name, value in numbers.items()} | known.said_of_speed


def _last(column: Any) -> float | None:
    return column[-1] if column else None


def _config_part(run: Run, config: Config | None) -> dict[str, Any]:
    out: dict[str, Any] = {"plan": run.plan(), "command": _command(run), "folder": str(run.path)}
    if config is None:
        return out | {"toml": "", "differences": []}
    return out | {"toml": config_files.render(config, with_help=False), "differences": differences(config)}


def _command(run: Run) -> str:
    """The command as it was run, to be read."""
    raw = disk.read_json(run.path / "command.json", is_ours=True)
    if not isinstance(raw, dict) or not isinstance(raw.get("argv"), list):
        return ""
    given, folder = raw.get("environment"), raw.get("folder")
    environment = {str(k): str(v) for k, v in given.items()} if isinstance(given, dict) else {}
    return launch.shown([str(w) for w in raw["argv"]], environment, folder if isinstance(folder, str) else "")


def _checkpoints_part(run: Run, config: Config | None, written: dict[str, int]) -> list[dict[str, Any]]:
    """Latest first: by their steps, since the clock may have been set meanwhile."""
    out = []
    for name, path in checkpoint_files(run, config, written).items():
        with contextlib.suppress(OSError):  # pruned meanwhile
            files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
            size, stamp = sum(p.stat().st_size for p in files), path.stat().st_mtime
            out.append({"name": name, "bytes": size, "step": written.get(name), "time": stamp, "is_folder": path.is_dir()})
    return sorted(out, key=lambda e: (-1 if e["step"] is None else e["step"], e["time"], e["name"]), reverse=True)
