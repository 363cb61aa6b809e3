"""Kill trainers at random moments, again and again, and see that nothing is lost: what tests/e2e/test_kills.py does in short
and tests/torture/test_kills.py at length.

A trainer tells through a pipe where it is (it enters a save, leaves a step, ...). A moment is: the so-many-th time that it
enters a place, and a part of how long it usually stays there. The signal comes from outside, whatever the trainer does then.
All moments of a run follow from (seed, number of the run); each is printed, so that a failed test says them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file

import forked
from limner import disk
from limner.engine import checkpoint
from limner.runs import Run
from trainer import new_run, result, train

SEED = int(os.environ.get("LIMNER_KILLS_SEED", "1"))
SECONDS = float(os.environ.get("LIMNER_KILLS_SECONDS", "inf"))
"""No more is begun after that, in each test."""
PLACES = {"starting": 4, "resuming": 3, "caching": 8, "step": 4, "sampling": 2, "validating": 2, "saving": 20}
"""How often each is chosen. Not all kills come in time, so more than half of the moments are in saves."""
_PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class When:
    """A moment in the life of a process."""

    place: str
    count: int
    part: float
    """Of how long a stay there takes."""


@dataclass
class Told:
    """What a process says of where it is."""

    pipe: Any
    stays: dict[str, list[float]] = field(default_factory=dict)
    """Place -> the lengths of the stays that came to their end, in seconds."""
    _inside: dict[str, float] = field(default_factory=dict)
    """The places it is in, the innermost last, and since when."""
    _entries: Counter[str] = field(default_factory=Counter)

    @property
    def where(self) -> str:
        return "saving" if "saving" in self._inside else next(reversed(self._inside), "between")  # it may save beside the loop

    def entered(self, place: str, count: int) -> bool:
        """Wait until it enters a place for the `count`-th time. False if it ends before."""
        while self._entries[place] < count:
            if not self._hear():
                return False
        return True

    def rest(self) -> None:
        """Hear all that it said before its end."""
        while self._hear():
            pass

    def _hear(self) -> bool:
        try:
            assert self.pipe.poll(_PATIENCE_SECONDS), f"silent for {_PATIENCE_SECONDS} s in {self.where}"
            turn, place = self.pipe.recv_bytes().decode().split(" ", 1)
        except (EOFError, ConnectionResetError):
            return False
        if turn == "in":
            self._inside[place] = time.monotonic()
            self._entries[place] += 1
        elif (since := self._inside.pop(place, None)) is not None:
            self.stays.setdefault(place, []).append(time.monotonic() - since)
        return True


def telling(said: Any, place: str, owner: Any, name: str) -> None:
    """Have a function say when it is entered and left."""
    original = getattr(owner, name)

    def told(*args: Any, **kwargs: Any) -> Any:
        said.send_bytes(f"in {place}".encode())
        try:
            return original(*args, **kwargs)
        finally:
            said.send_bytes(f"out {place}".encode())

    setattr(owner, name, told)


def _train(folder: str, home: str, said: Any) -> None:
    """Be the trainer of a run, and say where."""
    said.send_bytes(b"in starting")
    os.environ["LIMNER_HOME"] = home
    forked.to_log(str(Path(folder) / "log.txt"))
    from limner.data.cache import Cache
    from limner.engine import __main__ as engine
    from limner.engine import previews, validation
    from limner.engine import train as loop

    for place, owner, name in [
        ("caching", Cache, "put"), ("resuming", checkpoint, "load_state"), ("step", loop, "move_weights"),
        ("sampling", previews, "paint_previews"), ("validating", validation, "measure"), ("saving", checkpoint, "save_state"),
        ("saving", checkpoint, "write_adapter"), ("saving", checkpoint, "_save_model"),
        ("saving", checkpoint, "delete_checkpoints"),
    ]:  # fmt: skip
        telling(said, place, owner, name)
    original = loop.loop

    def begun(*args: Any) -> bool:
        said.send_bytes(b"out starting")
        return original(*args)

    loop.loop = begun
    code = engine.main(folder)
    sys.stdout.flush()
    os._exit(code)


def launch(run: Run) -> tuple[BaseProcess, Told]:
    forked.start_server()
    hears, says = forked.CONTEXT.Pipe(duplex=False)
    process = forked.CONTEXT.Process(target=_train, args=(str(run.path), os.environ["LIMNER_HOME"], says))
    process.start()
    says.close()
    return process, Told(hears)


# --- what must hold ---------------------------------------------------------------------------------------------------


def tree_hash(folder: Path) -> str:
    """Of all names, contents and times below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        facts = path.stat()
        digest.update(f"{path.relative_to(folder)} {facts.st_mode} {facts.st_size} {facts.st_mtime_ns}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def is_final(path: Path, root: Path) -> bool:
    return not any(part.startswith(disk.TEMPORARY) for part in path.relative_to(root).parts)


def require_whole(folder: Path) -> None:
    """Every file below that has its final name can be read to its end, and is what its manifest says."""
    for path in folder.rglob("*"):
        if not is_final(path, folder):
            continue
        if path.name.startswith("step-") and path.is_dir():
            assert disk.manifest_faults(path) == [], path
        elif path.name == disk.MANIFEST:
            assert disk.manifest_faults(path.parent) == [], path
        elif path.suffix == ".safetensors":
            assert load_file(path), path
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            *lines, _ = path.read_bytes().split(b"\n")  # the last may be half written
            assert all(isinstance(json.loads(line), dict) for line in lines), path


def require_kept(run: Run) -> None:
    """What was reported is there: the newest training state told of, or a newer one, and the last checkpoint."""
    told = [e for e, _ in run.events()]
    states = [e["step"] for e in told if e["event"] == "state"]
    newest, faults = checkpoint.newest_state(run.states)
    assert faults == []
    assert not states or (newest is not None and checkpoint.step_of(newest) >= states[-1]), (states, newest)
    saved = [Path(e["path"]) for e in told if e["event"] == "checkpoint"]
    assert not saved or saved[-1].exists()


# --- killing ----------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """How many processes were ended, and where they were then."""

    ended: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    slowest: float = 0.0
    """Seconds between a polite signal and the end."""

    @property
    def count(self) -> int:
        return self.ended.total()

    def __str__(self) -> str:
        places = ", ".join(f"{place} {count}" for place, count in self.ended.most_common())
        return f"{self.count} in {self.runs} runs, all finished and equal to the bit; they were in: {places}"


@dataclass(frozen=True)
class Uninterrupted:
    """What a run leaves that nobody ended, and how long it stayed in each place."""

    found: dict[str, Any]
    stays: dict[str, float]

    @staticmethod
    def of(chosen: Any) -> Uninterrupted:
        run = new_run(chosen)
        process, told = launch(run)
        told.rest()
        process.join()
        assert process.exitcode == 0, run.tail()
        return Uninterrupted(result(run), {place: statistics.median(all_) for place, all_ in told.stays.items()})


def moment(rng: random.Random, *, is_first: bool) -> When:
    """The next one of a run; the `is_first` trainer has nothing to resume, and later ones rarely anything to cache."""
    likely = {place: n for place, n in PLACES.items() if place != ("resuming" if is_first else "caching")}
    place = rng.choices(list(likely), list(likely.values()))[0]
    return When(place, rng.randint(1, 3) if place in ("step", "saving") else 1, rng.random())


def end_trainers(
    chosen: Any, pictures: Path, least: int, most_per_run: int, how: signal.Signals = signal.SIGKILL, seed: int = SEED
) -> Tally:
    """Train runs of a configuration, each ended up to `most_per_run` times, until `least` trainers were ended. Every run comes
    to its end, and each has a cache of its own."""
    whole, tally = Uninterrupted.of(chosen), Tally()
    before, until = tree_hash(pictures), time.monotonic() + SECONDS
    while tally.count < least and time.monotonic() < until:
        tally.runs += 1
        rng = random.Random(f"{seed} {tally.runs}")
        cache = pictures.parent / f"cache-{seed}-{tally.runs}"
        memory = chosen.memory.model_copy(update={"cache_path": cache})
        run, ended = new_run(chosen.model_copy(update={"memory": memory})), 0
        while ended < most_per_run and tally.count < least and time.monotonic() < until:
            when = moment(rng, is_first=not ended)
            where = _end_once(run, when, whole.stays.get(when.place, 0.0), how, tally)
            print(f"seed {seed}, run {tally.runs}: {how.name} at {when}: {where or 'came too late'}", flush=True)
            if where:
                tally.ended[where] += 1
                ended += 1
            require_whole(run.path)
            require_whole(cache)
            require_kept(run)
            assert tree_hash(pictures) == before
            if run.state().status == "done":
                break
        assert train(run) == 0, run.tail()
        assert run.state().status == "done" and not list(run.path.rglob(f"{disk.TEMPORARY}*"))
        assert result(run) == whole.found
        assert tree_hash(pictures) == before
    return tally


def _end_once(run: Run, when: When, stay: float, how: signal.Signals, tally: Tally) -> str:
    """Train until that moment; returns where it was ended, "" if it had ended by then."""
    process, told = launch(run)
    if told.entered(when.place, when.count):
        time.sleep(when.part * stay)
        os.kill(process.pid or 0, how)
    since = time.monotonic()
    told.rest()
    process.join(_PATIENCE_SECONDS)
    took, code = time.monotonic() - since, process.exitcode
    told.pipe.close()
    state = run.state()
    if code == 0:
        assert state.status == "done", (state, run.tail())
        return ""
    if how == signal.SIGKILL or code == -how:  # a polite signal before anyone listened, in the first milliseconds
        assert code == -how, (code, run.tail())
        return told.where if how == signal.SIGKILL else "the first imports"
    tally.slowest = max(tally.slowest, took)
    assert code == 128 + how and state.status == "stopped", (code, state, run.tail())
    assert took < 30
    steps = [e["step"] for e in run.history() if e["event"] == "step"]
    newest, _ = checkpoint.newest_state(run.states)
    assert (steps[-1] if steps else 0) == (checkpoint.step_of(newest) if newest else 0) == state.step
    return when.place
