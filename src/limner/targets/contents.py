"""What there is in a job's folder, as far as it is brought into the run's."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limner import disk
from limner.runs import State

GROWING = ("events.jsonl", "log.txt")
_FOLDERS = ("samples", "checkpoints", "states", "tensorboard")


@dataclass(frozen=True)
class Contents:
    """A job's folder at one moment."""

    folder: str
    """Where it is, as seen from there."""
    state: dict[str, Any]
    """Its `state.json`."""
    exit_code: int | None
    """Of the trainer, None as long as it has not ended."""
    growing: dict[str, int]
    """Name -> bytes, of the files that only grow. Looked at first: what an event tells of is there by then."""
    files: dict[str, tuple[int, int]]
    """Path in the folder -> (bytes, time of the last change in ns), of samples, checkpoints and training states that are
    finished, the plan, and TensorBoard's files."""

    def told(self) -> State:
        """The state that the trainer told."""
        return State.of(self.state)

    def entries(self, folder: str) -> dict[str, dict[str, tuple[int, int]]]:
        """The entries of one of these folders: name -> its files. One that is a file itself has the only path ""."""
        found = dict[str, dict[str, tuple[int, int]]]()
        for path, stamp in self.files.items():
            parent, _, rest = path.partition("/")
            if parent == folder:
                name, _, inner = rest.partition("/")
                found.setdefault(name, {})[inner] = stamp
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(raw: Any) -> Contents:
        """Raises ValueError if it is none, or names a file outside the folder: it comes from another machine."""
        try:
            growing = {name: int(raw["growing"][name]) for name in GROWING}
            files = {str(path): (int(stamp[0]), int(stamp[1])) for path, stamp in raw["files"].items()}
            folder, code, state = str(raw["folder"]), raw["exit_code"], dict(raw["state"])
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"no contents of a job's folder: {error}") from None
        for path in files:
            parts = path.split("/")
            if (parts[0] not in _FOLDERS and path != "plan.json") or {"", ".", ".."} & set(parts) or "\\" in path:
                raise ValueError(f"names {path!r}")
        return Contents(folder, state, code if isinstance(code, int) else None, growing, files)


def look(folder: Path) -> Contents | None:
    """What is in a job's folder; None if there is none."""
    if not folder.is_dir():
        return None
    ended, state = disk.read_json(folder / "exit.json"), disk.read_json(folder / "state.json")
    growing = {name: (folder / name).stat().st_size if (folder / name).exists() else 0 for name in GROWING}
    files = dict[str, tuple[int, int]]()
    for name in _FOLDERS:
        for parent, folders, names in os.walk(folder / name):
            folders[:] = [n for n in folders if not n.startswith(disk.TEMPORARY)]
            for path in (Path(parent) / n for n in names if not n.startswith(disk.TEMPORARY)):
                _note(folder, path, files)
    _note(folder, folder / "plan.json", files)
    code = ended.get("code") if isinstance(ended, dict) else None
    state = state if isinstance(state, dict) else {}
    return Contents(folder.as_posix(), state, code if isinstance(code, int) else None, growing, files)


def _note(folder: Path, path: Path, files: dict[str, tuple[int, int]]) -> None:
    with contextlib.suppress(OSError):  # pruned just now
        stat = path.stat()
        files[path.relative_to(folder).as_posix()] = (stat.st_size, stat.st_mtime_ns)
