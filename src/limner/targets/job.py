"""A job elsewhere: how it is remembered (`target.json` in the run's folder), and what a target must be able to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, Protocol

from limner import disk
from limner.runs import JOB_FILE, Run
from limner.targets.contents import Contents


@dataclass(frozen=True)
class Job:
    """What is known of a job, and kept."""

    target: str
    where: str
    """The address of Ray's dashboard, or submitit's name of the cluster: slurm or local."""
    id: str
    folder: str
    """The job's folder, as seen from where it runs; "" as long as it is not known."""
    is_open: bool = True
    """Whether it may still be there: false once its end was seen and everything brought here."""
    is_submitted: bool = False
    """Whether the engine has taken it."""
    is_shared: bool = True
    """Whether its folder can be seen from here."""
    asked: str = ""
    """What was asked of it last: "", "stop" or "stop-now"."""
    log_bytes: int = 0
    """How much of its log is in the run's."""
    process_started: float = 0.0
    """Of a job that is a process of this machine: when that began."""

    @staticmethod
    def read(run: Run) -> Job | None:
        """A run's job; None if it has had none, or the file is damaged."""
        raw = disk.read_json(run.path / JOB_FILE)
        known = {f.name: raw[f.name] for f in fields(Job) if f.name in raw} if isinstance(raw, dict) else {}
        types = {f.name: type(f.default) for f in fields(Job) if f.name not in ("target", "where", "id", "folder")}
        if not {"target", "where", "id", "folder"} <= set(known):
            return None
        if any(not isinstance(value, types.get(name, str)) for name, value in known.items()):
            return None
        return Job(**known)

    def write(self, run: Run) -> None:
        disk.write_json(run.path / JOB_FILE, asdict(self))


@dataclass(frozen=True)
class Seen:
    """How a job stands with the engine that runs it."""

    status: Literal["waiting", "running", "ended", "unknown"]
    """Waiting there; running; ended, be it well or not; or nothing was told just now."""
    words: str = ""
    """What the engine says of it."""


class NotReached(Exception):
    """The engine does not answer, for now."""


class Files(Protocol):
    """The job's folder, as far as it is reached from here. All raise NotReached."""

    def look(self) -> Contents | None:
        """What is there now; None as long as there is nothing."""
        ...

    def read(self, name: str, start: int, end: int) -> bytes:
        """A part of a file that only grows."""
        ...

    def bring(self, name: str, to: Path) -> None:
        """Make `to` a copy of a file that does not change any more."""
        ...

    def ask(self, name: str, text: str) -> None:
        """Put a request into its `control/`."""
        ...


class Target(Protocol):
    """An engine that runs jobs. All raise NotReached."""

    files: Files

    def submit(self, package: Path) -> Job:
        """Have a prepared job folder trained, or the zip of one; the job as it then is. Raises UserError if it is refused."""
        ...

    def poll(self) -> Seen: ...

    def stop(self) -> None:
        """End the job, as the engine does it."""
        ...

    def forget(self) -> None:
        """Remove what the job has left elsewhere; everything was brought here."""
        ...
