"""The run directory: the interface between the trainer and everyone who watches it.

The trainer alone writes `events.jsonl`, and `state.json` from its start on; whoever started it writes `exit.json`; anyone
may put a request into `control/`. Before the start, `state.json` is written by who puts the run into the queue, takes it out
again or starts the trainer. All of them write it while they hold the run's lock (:meth:`Run.hold`), so no two do at once.
What is true is derived from these files and the process table, never remembered.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import filelock
import platformdirs
import psutil

from limner import disk, exits, processes
from limner.config import Config
from limner.config import files as config_files
from limner.errors import UserError, wrong

Status = Literal["queued", "starting", "running", "stopping", "waiting", "done", "failed", "stopped"]
Phase = Literal[
    "", "loading", "unpacking", "painting class pictures", "caching", "training", "validating", "sampling", "saving", "working",
    "queued elsewhere",
]  # fmt: skip
JOB_FILE = "target.json"
"""What is known of the job that trains a run elsewhere (`limner.targets`)."""
LIVE: tuple[Status, ...] = ("starting", "running", "stopping")
LAUNCHER = "LIMNER_LAUNCHER"
"""In the environment of processes that a launcher started which has the last word about them: its pid."""
_CHANGE = re.compile(r"change-[0-9]{1,20}\.toml", re.ASCII)
_MAX_CHANGE_BYTES = 1 << 20
REQUESTS = ("stop", "stop-now", "sample", "save")
_WORDS = {"status": get_args(Status), "phase": get_args(Phase)}
_MAX_STATE_BYTES = 1 << 20
_MAX_LINE_BYTES = 8 << 20
_LARGEST = 1 << 53
"""Whole numbers beyond it are none that we wrote, and a browser cannot hold them."""
_MINUTE = len("2026-01-31_2359")
_KINDS: dict[str, type | tuple[type, ...]] = {
    "event": str, "step": int, "time": (int, float), "loss": (int, float), "memory_mib": int, "device_mib": int, "lr": dict,
    "options": dict, "message": str, "path": str, "prompt": str, "embedding": str, "hint": str, "status": str,
}  # fmt: skip
"""What the members of an event are, where it has them."""
_BEGAN = time.time() - time.monotonic()


def now() -> float:
    """Seconds since the epoch, by the clock as it was when this process began: it never jumps, whatever is done to the
    clock, so that what lies between two of a process's events is a length of time."""
    return _BEGAN + time.monotonic()


def has_launcher() -> bool:
    """Whether this process is one of several whose launcher lives, and will say how they ended."""
    return os.environ.get(LAUNCHER) == str(os.getppid())


def home() -> Path:
    """Limner's home: runs, caches, settings. `LIMNER_HOME`, or the platform's data folder."""
    chosen = os.environ.get("LIMNER_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_data_dir("limner", appauthor=False))


def runner_sign() -> Path:
    """Where a runner says that it is there, and how it died; removed by one that leaves in order."""
    return home() / "runner.json"


def lock_of_tools(device: str, seconds: float) -> filelock.FileLock:
    """Held by a tool as long as it works on a graphics card, and looked at before a run is started there."""
    return lock(f"tool-{device}", seconds)


def lock(name: str, seconds: float) -> filelock.FileLock:
    """One of the home's own locks, waited for that long. Raises filelock.Timeout when it is entered."""
    return disk.lock(disk.own_folder(home() / "locks") / f"{name}.lock", seconds)


@dataclass(frozen=True)
class State:
    """What a run says of itself, in `state.json`."""

    status: Status = "queued"
    phase: Phase = ""
    progress: tuple[int, int] = (0, 0)
    step: int = 0
    steps: int = 0
    pid: int = 0
    process_started: float = 0.0
    parent: int = 0
    """The process that started it: of several trainers, the launcher whose exit code tells of them all."""
    parent_started: float = 0.0
    """Of several trainers, when the launcher started: as long as it lives it may start them again."""
    boot: str = ""
    """The start of the machine in which those processes live, "" where that is not known."""
    booted: float = 0.0
    """When that was, by the clock that tells of the processes' starts. Who sets the clock moves all of them."""
    error: str = ""
    hangs: int = 0
    """How many trainers hung since a person started it last (`limner.hung`)."""
    updated: float = 0.0

    @property
    def worker(self) -> int | None:
        """The process that answers for the run now: the trainer, or the launcher of several; None if there is none any more."""
        if processes.is_alive(self.parent, self.parent_started + self._moved):
            return self.parent
        return self.pid if self.is_alive else None

    @property
    def is_alive(self) -> bool:
        """Whether the trainer's own process is there."""
        return processes.is_alive(self.pid, self.process_started + self._moved)

    @property
    def _moved(self) -> float:
        """Seconds by which the processes' starts have moved with the clock."""
        return psutil.boot_time() - self.booted if self.boot and self.boot == processes.this_boot() else 0.0

    @staticmethod
    def read(path: Path) -> State:
        """The state in a file; a missing one reads as queued, a damaged one as failed. One that was said by the trainer of
        another run, such as in a copied folder, is damaged: nobody trains this one."""
        raw = None
        for _ in range(2):  # between the first look and the question whether it is there, it may have been written
            raw = disk.read_json(path, _MAX_STATE_BYTES, is_ours=True)
            if raw is not None or not os.path.lexists(path):
                break
        state = State.of(raw)
        if not isinstance(raw, dict) or raw.get("status") not in _WORDS["status"]:
            return State("failed", error=_UNKNOWN) if os.path.lexists(path) else State()
        if state.status in LIVE and raw.get("run", path.parent.name) != path.parent.name:
            return replace(state, status="failed", phase="", pid=0, parent=0, error=_OF_ANOTHER)
        return state

    @staticmethod
    def of(raw: Any) -> State:
        """The state in such a file's JSON; what is missing or damaged is as in a new one."""
        known = {}
        for name, default in asdict(State()).items():
            value = raw.get(name) if isinstance(raw, dict) else None
            if name == "progress" and isinstance(value, list) and [type(v) for v in value] == [int, int]:
                known[name] = tuple(value)
            elif name in _WORDS and value not in _WORDS[name]:
                continue
            elif type(value) is type(default) or (type(value) is int and isinstance(default, float)):
                known[name] = default if isinstance(value, int | float) and abs(value) >= _LARGEST else value
        return State(**known)


_UNKNOWN = "its state.json is damaged, so that nothing is known of its end; resume goes on from its newest training state"
_OF_ANOTHER = "its state.json is that of another run; resume goes on from its own newest training state"


@dataclass(frozen=True)
class Run:
    """One run directory."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def states(self) -> Path:
        return self.path / "states"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def prompts(self) -> Path | None:
        """The prompt file, copied in before the start."""
        return next(self.path.glob("prompts.*"), None)

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    def config(self) -> Config:
        """What was asked. Raises UserError if the file was damaged since."""
        return config_files.read(self.path / "config.toml")

    @property
    def processes(self) -> int | None:
        """With how many processes it was last told to go on, in `processes.json`; None if as many as its config says."""
        raw = disk.read_json(self.path / "processes.json")
        return raw if type(raw) is int and raw > 0 else None

    def plan(self) -> dict[str, Any]:
        """What was derived before the start; {} if it is not there yet."""
        raw = disk.read_json(self.path / "plan.json", is_ours=True)
        return raw if isinstance(raw, dict) else {}

    def lay_out(self) -> None:
        """Make the folder's folders, as before a start. What lies in their place is set aside, and so is a file that is to be
        written and is none, and a damaged state. The run's lock is held."""
        for name in ("control", "samples", "checkpoints", "states"):
            disk.own_folder(self.path / name)
        for name in ("state.json", "exit.json", "plan.json", "command.json", "events.jsonl", self.log.name):
            if (self.path / name).is_dir():
                disk.set_aside(self.path / name)
        if State.read(self.path / "state.json").error in (_UNKNOWN, _OF_ANOTHER):
            disk.set_aside(self.path / "state.json")

    # --- what the trainer writes ---

    def write_state(self, state: State, *, durable: bool = True) -> None:
        said = asdict(replace(state, updated=time.time())) | {"run": self.id}
        disk.write_json(self.path / "state.json", said, durable=durable)

    def starting(self, pid: int) -> State:
        """The state of a trainer that has just been started as process `pid`; a resumed run has steps behind it already."""
        earlier = State.read(self.path / "state.json")
        me: dict[str, Any] = {"pid": pid}  # it may be gone already
        with contextlib.suppress(psutil.Error):
            me = processes.facts(pid) | {"parent": (parent := psutil.Process(pid).ppid())}
            if pid == os.getpid() and has_launcher():
                me["parent_started"] = psutil.Process(parent).create_time()
        return State("starting", "loading", step=earlier.step, steps=earlier.steps, hangs=earlier.hangs, **me)

    def event(self, kind: str, **values: Any) -> None:
        """Append one event. A line is written by a single call, so that readers see whole lines or none."""
        line = json.dumps({"event": kind, "time": round(now(), 3), **values}, ensure_ascii=False, allow_nan=False)
        with (self.path / "events.jsonl").open("ab") as file:
            file.write(line.encode("utf-8", "replace") + b"\n")

    def sync_events(self) -> None:
        """Wait until the events told so far are on the disk, and would outlive a power cut."""
        with contextlib.suppress(FileNotFoundError):
            disk.fsync(self.path / "events.jsonl")

    def end_last_line(self) -> None:
        """Close a line that a killed writer left open, so that the next event starts on a line of its own."""
        path = self.path / "events.jsonl"
        if path.exists() and path.stat().st_size:
            with path.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    # --- what anyone may read ---

    def events(self, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """(event, offset behind it) from byte `start` on; damaged lines are passed over. Constant memory."""
        path = self.path / "events.jsonl"
        if not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(start)
            is_inside = False  # a line that is longer than any that we write
            while line := file.readline(_MAX_LINE_BYTES):
                start += len(line)
                is_whole, was_inside = line.endswith(b"\n"), is_inside
                is_inside = not is_whole
                if is_whole and not was_inside:
                    with contextlib.suppress(ValueError, RecursionError):
                        event = disk.parse_line(line)
                        if isinstance(event, dict) and "options" in event:  # which are shown as they are
                            event = disk.parse_json(line)
                        if _is_event(event):
                            yield event, start

    def history(self, *kinds: str) -> list[dict[str, Any]]:
        """The events as one uninterrupted run would have written them: what was done again after a resume comes once.

        Of the given kinds alone, or all, of which there may be millions.
        """
        out: list[dict[str, Any]] = []
        for event, _ in self.events():
            if event.get("event") == "resume":
                # at step 0 there was no state yet: everything but the start is done again
                step = event.get("step", 0)
                out = [e for e in out if (e.get("step", 0) <= step if step else e.get("event") == "start")]
            if not kinds or event.get("event") in kinds:
                out.append(event)
        return out

    def state(self) -> State:
        """What is true now, from state.json, exit.json and the process table."""
        state = State.read(self.path / "state.json")
        if state.status not in LIVE or state.worker is not None:
            return state
        state = State.read(self.path / "state.json")  # it may have said its last word just before it ended
        if state.status not in LIVE:
            return state
        if self.is_out():
            said = "its job goes on; the process that follows it is started anew"
            return replace(state, status="waiting", phase="", error=said)
        return replace(state, status="failed", error=state.error or exits.in_words(self, state))

    def is_out(self) -> bool:
        """Whether a job elsewhere may be training it, be it followed from here or not."""
        job = disk.read_json(self.path / JOB_FILE)
        return isinstance(job, dict) and job.get("is_open") is True

    def tail(self, limit: int = 4000) -> str:
        """The end of the log."""
        if not self.log.is_file():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - limit))
            return file.read().decode("utf-8", "replace")

    # --- requests ---

    def request(self, what: str) -> None:
        """Ask the trainer for something; it consumes the request at its next step."""
        assert what in REQUESTS
        disk.write_text(disk.own_folder(self.path / "control") / what, f"{time.time()}\n")

    def take_requests(self) -> list[str]:
        """The trainer's side: pending requests, each consumed by a rename so that it is taken once."""
        folder = self.path / "control"
        taken = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for entry in os.scandir(folder):
                if entry.name in REQUESTS:
                    with contextlib.suppress(OSError):
                        os.replace(entry.path, folder / f".taken-{entry.name}")
                        taken.append(entry.name)
        return taken

    def take_changes(self) -> list[tuple[str, str]]:
        """The trainer's side: (file name, text) of the pending live changes in order, each consumed by a rename."""
        folder, taken = self.path / "control", list[tuple[str, str]]()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names = [e.name for e in os.scandir(folder) if is_change(e.name)]
            for name in sorted(names, key=lambda n: int(n[7:-5])):
                with contextlib.suppress(OSError):
                    os.replace(folder / name, folder / f".taken-{name}")
                    with (folder / f".taken-{name}").open("rb") as file:
                        taken.append((name, file.read(_MAX_CHANGE_BYTES).decode("utf-8", "replace")))
        return taken

    def is_asked_to_stop(self) -> bool:
        """Whether a stop is pending; leaves it, and all else that was asked, to be taken later."""
        return any((self.path / "control" / name).exists() for name in ("stop", "stop-now"))

    def was_asked_to_stop(self) -> bool:
        """Whether a stop is pending, or was taken by the trainer that was started last."""
        taken = (self.path / "control" / f".taken-{name}" for name in ("stop", "stop-now"))
        return self.is_asked_to_stop() or any(path.exists() for path in taken)

    def drop_requests(self, before: float) -> None:
        """Forget what was asked of an earlier trainer: requests older than `before` (seconds since the epoch)."""
        for path in disk.own_folder(self.path / "control").iterdir():
            if path.is_file() and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)

    def hold(self, seconds: float = 5.0) -> filelock.FileLock:
        """The run's lock, to be entered; the trainer holds it to its end. Raises filelock.Timeout after `seconds`, which
        outlast those who hold it for a moment only: to look whether it is held, or to write the state before a start.
        """
        return disk.lock(self.path / "lock", seconds)

    def is_locked(self) -> bool:
        """Whether a trainer holds the run, be it only since a moment."""
        try:
            with self.hold(0):
                return False
        except filelock.Timeout:
            return True


def _is_event(raw: Any) -> bool:
    """Whether a line of the events is one, with members of the right kinds."""
    if not isinstance(raw, dict):
        return False
    known = {name: raw[name] for name in _KINDS.keys() & raw.keys()}
    if any(not isinstance(value, _KINDS[name]) or isinstance(value, bool) for name, value in known.items()):
        return False
    return all(abs(value) < _LARGEST for value in known.values() if isinstance(value, (int, float)))


def is_change(name: str) -> bool:
    """Whether a request of this name is a live change."""
    return _CHANGE.fullmatch(name) is not None


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:40] or "run"


def create(config: Config) -> Run:
    """Make a new run directory and write its config. Two starts in one minute get different names."""
    run = new(home() / "runs", f"{datetime.datetime.now():%Y-%m-%d_%H%M}_{_slug(config.output.name)}")
    run.lay_out()
    disk.write_text(run.path / "config.toml", config_files.render(config))
    run.write_state(State())
    return run


def new(folder: Path, stem: str) -> Run:
    """A new directory in `folder`, called `stem`, or that and a number where another has the name."""
    disk.own_folder(folder)
    for attempt in range(1, 10_000):
        path = folder / (stem if attempt == 1 else f"{stem}-{attempt}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            disk.fsync(folder)
            (path / "control").mkdir()
            return Run(path)
    raise wrong(folder.name, f"{folder} holds too many named {stem}.", "Delete some of them.")


def all_runs() -> list[Run]:
    """Every run, oldest first."""
    return kept(home() / "runs", "config.toml")


def kept(folder: Path, file: str) -> list[Run]:
    """What is kept in a folder and has a file of that name, oldest first: by the minute that its name begins with, and within
    one by when that file was written, which a copy of the folder may forget."""
    if not folder.is_dir():
        return []
    times = {path: written_at(path / file) for path in folder.iterdir()}
    made = sorted((path.name[:_MINUTE], made, path) for path, made in times.items() if made is not None)
    return [Run(path) for _, _, path in made]


def written_at(file: Path) -> int | None:
    """When it was written, in nanoseconds; None where there is none, or it lies where one may not look."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


def newest_of(config: Config) -> Run | None:
    """The newest run of exactly this configuration."""
    for run in reversed(all_runs()):
        with contextlib.suppress(UserError):
            if run.config() == config:
                return run
    return None


def named(name: str) -> Run:
    """The run whose id is exactly `name`, be it there or not."""
    return Run(home() / "runs" / name)


def find(name: str) -> Run:
    """The run whose id is `name`, or starts with or ends in it if only one does; "last" is the newest."""
    found = all_runs()
    if name == "last" and found:
        return found[-1]
    exact = [r for r in found if r.id == name]
    near = exact or [r for r in found if r.id.startswith(name) or r.id.endswith(name)]
    if len(near) == 1:
        return near[0]
    remedy = "`limner runs list` shows them." if not near else f"Be more exact: {', '.join(r.id for r in near[:5])}."
    raise wrong("run", f"{name!r} names {'no run' if not near else f'{len(near)} runs'}.", remedy)


def delete(run: Run) -> Path:
    """Move a run to the trash folder; returns where it is now. Raises UserError while it is waiting or running."""
    if run.state().status == "waiting":
        raise wrong("run", f"{run.id} is waiting in the queue.", "Stop it first.")
    if run.state().status in LIVE or run.is_locked():
        raise wrong("run", f"{run.id} is running.", "Stop it first.")
    trash = disk.own_folder(home() / "trash")
    target = trash / run.id
    while target.exists():
        target = trash / f"{run.id}.{secrets.token_hex(3)}"
    os.replace(run.path, target)
    return target
