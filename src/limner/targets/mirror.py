"""Bring what appears in a job's folder into the run's, so that all who watch a run see it as if it were trained here.

The run's `events.jsonl` is the job's, line for line, with paths as they are here: the number of its lines tells how far it
is. (The job begins with the run's earlier events.)
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from limner import disk
from limner.runs import Run
from limner.targets.contents import Contents
from limner.targets.job import Files, Job

_PATHS = ("path", "embedding")


class Mirror:
    """Keeps a run's folder like its job's."""

    def __init__(self, run: Run, files: Files) -> None:
        self._run, self._files, self._theirs = run, files, ""
        self._offset = 0
        self._skip = _lines(run.path / "events.jsonl")  # of the job's lines, those that are here
        self._rest = b""
        self._known = dict[str, dict[str, tuple[int, int]]]()

    def catch_up(self, job: Job) -> tuple[Contents | None, Job]:
        """Bring what is new; what there is there, and the job with how much of its log is here. Raises NotReached."""
        found = self._files.look()
        if found is None:
            return None, job
        self._theirs = found.folder
        if "plan.json" in found.files and self._known.get("plan.json") != {"": found.files["plan.json"]}:
            self._bring("plan.json", {"": found.files["plan.json"]})
        for folder in ("samples", "checkpoints"):
            self._bring_entries(folder, found)
        self._events(found.growing["events.jsonl"])
        return found, self._log(job, found.growing["log.txt"])

    def bring_rest(self, found: Contents) -> None:
        """Bring what is needed after the end only: TensorBoard's files and the newest training state, from which the run can
        be resumed. Older states here go. Raises NotReached."""
        self._bring_entries("tensorboard", found)
        states = {name: files for name, files in found.entries("states").items() if name.startswith("step-")}
        if not states:
            return
        newest = max(states, key=lambda name: (len(name), name))
        self._bring(f"states/{newest}", states[newest])
        for path in self._run.states.iterdir():
            if path.name != newest:
                shutil.rmtree(path, ignore_errors=True)

    def _bring_entries(self, folder: str, found: Contents) -> None:
        entries = found.entries(folder)
        for name, files in entries.items():
            if self._known.get(f"{folder}/{name}") != files:
                self._bring(f"{folder}/{name}", files)
        for known in [k for k in self._known if k.startswith(f"{folder}/") and k.partition("/")[2] not in entries]:
            del self._known[known]  # pruned there
            _remove(self._run.path / known)

    def _bring(self, name: str, files: dict[str, tuple[int, int]]) -> None:
        """Bring a file, or a folder with all that is in it; it appears here whole, or not at all."""
        target = self._run.path / name
        target.parent.mkdir(exist_ok=True)
        temporary = disk.temporary_name(target)
        try:
            if set(files) == {""}:
                self._files.bring(name, temporary)
            else:
                for inner in files:
                    (temporary / inner).parent.mkdir(parents=True, exist_ok=True)
                    self._files.bring(f"{name}/{inner}", temporary / inner)
                _remove(target)
            os.replace(temporary, target)
        finally:
            _remove(temporary)
        self._known[name] = files

    def _events(self, size: int) -> None:
        if size <= self._offset:
            return
        chunk = self._files.read("events.jsonl", self._offset, size)
        self._offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        new, self._skip = lines[self._skip :], max(0, self._skip - len(lines))
        if new:
            with (self._run.path / "events.jsonl").open("ab") as file:
                file.write(b"".join(self._here(line) + b"\n" for line in new))

    def _here(self, line: bytes) -> bytes:
        """An event, its files named as they are here."""
        if self._theirs.encode() not in line:
            return line
        try:
            event = json.loads(line)
            for name in _PATHS:
                if isinstance(event.get(name), str) and (inner := event[name].removeprefix(f"{self._theirs}/")) != event[name]:
                    event[name] = str(self._run.path / inner)
            return json.dumps(event, ensure_ascii=False).encode("utf-8", "replace")
        except (ValueError, AttributeError):
            return line

    def _log(self, job: Job, size: int) -> Job:
        if size <= job.log_bytes:
            return job
        chunk = self._files.read("log.txt", job.log_bytes, size)
        with self._run.log.open("ab") as file:
            file.write(chunk)
        job = replace(job, log_bytes=job.log_bytes + len(chunk))
        job.write(self._run)
        return job


def _lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
