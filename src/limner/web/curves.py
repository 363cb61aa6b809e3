"""The curves of a run: its events read once, then only what was added, kept as plain arrays of numbers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from limner.changes import Change
from limner.runs import Run

SMOOTHING = 0.98
"""How much of the running mean each step keeps: it looks back over about 1 / (1 - 0.98) = 50 steps."""
SPEED = (
    "seconds_per_step", "images_per_second", "tflops", "utilisation", "peak_tflops", "data_wait", "host", "device",
)  # fmt: skip
"""The numbers of a report of speed (docs/speed-meter.md)."""
_PACE_SECONDS = 30.0
_EXACT = frozenset({"time"})
"""Columns whose numbers need more than seven digits."""
_KEPT_RUNS, _KEPT_ROWS = 32, 1_000_000


class Table:
    """Rows of numbers by step, one array a column; a number that a row lacks is NaN.

    NumPy is given the arrays themselves, not copies, and only for as long as they are not appended to.
    """

    def __init__(self) -> None:
        self.steps = array("q")
        self.columns: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        for name in values.keys() - self.columns.keys():
            self.columns[name] = array("d" if name in _EXACT else "f", [math.nan]) * len(self)
        self.steps.append(step)
        for name, column in self.columns.items():
            column.append(values.get(name, math.nan))

    def keep(self, last_step: int) -> None:
        """Drop the rows behind a step."""
        kept = np.asarray(self.steps) <= last_step
        self.steps, self.columns = _only(self.steps, kept), {name: _only(c, kept) for name, c in self.columns.items()}


def _only(column: array[Any], kept: np.ndarray) -> array[Any]:
    return array(column.typecode, np.asarray(column)[kept].tobytes())


class Curves:
    """What the events of one run say, as `Run.history` would: what was done again after a resume comes once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._turn = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self.steps, self.memory, self.validation, self.speed = Table(), Table(), Table(), Table()
        self.checkpoints: dict[str, int] = {}
        """File name -> step; those that were deleted since are among them."""
        self.prompts: dict[str, str] = {}
        """The number of a prompt, as in its samples' names -> its text."""
        self.warnings: list[str] = []
        self.said_of_speed: dict[str, str] = {}
        """What the last report of speed says in words: the hint, and where the device's peak is from."""
        self.changes: list[Change] = []
        """The live changes that hold, in their order."""
        self._offset = self._inode = self._changes = self._session = self._size = 0
        self._mean = 0.0
        self._token = secrets.token_hex(4)
        self._answer: tuple[str, int, bytes] = ("", 0, b"")

    @property
    def version(self) -> str:
        """Changes whenever something was read."""
        return f"{self._token}-{self._changes}"

    def update(self) -> None:
        """Read what was added to the events. A file that was replaced, or became shorter, is read anew."""
        with self._turn, contextlib.suppress(FileNotFoundError):
            facts = os.stat(self.run.path / "events.jsonl")
            if facts.st_ino != self._inode or facts.st_size < self._offset:
                self._begin()
                self._inode = facts.st_ino
            if facts.st_size > self._offset and facts.st_size != self._size:  # else nothing came to what is no whole line
                self._size = facts.st_size
                for event, offset in self.run.events(self._offset):
                    self._offset = offset
                    self._take(event)
                    self._changes += 1

    def _take(self, event: dict[str, Any]) -> None:
        kind, step = event.get("event"), event.get("step", 0)
        if type(step) is not int or not 0 <= step < 1 << 53:
            return
        if kind == "step":
            self._take_step(step, event)
        elif kind == "memory":
            self.memory.append(step, {k: number(event[k]) for k in ("memory_mib", "device_mib") if k in event})
        elif kind == "speed":
            self.speed.append(step, {k: number(event[k]) for k in SPEED if k in event})
            self.said_of_speed = {k: event[k][:400] for k in ("hint", "peak_source") if isinstance(event.get(k), str)}
        elif kind == "validation":
            self.validation.append(step, {"loss": number(event.get("loss"))})
        elif kind == "resume":
            self._rewind(step)
        elif kind == "checkpoint" and isinstance(event.get("path"), str):
            self.checkpoints[Path(event["path"]).name] = step
            if isinstance(event.get("embedding"), str):
                self.checkpoints[Path(event["embedding"]).name] = step
        elif kind == "sample" and isinstance(event.get("path"), str) and isinstance(event.get("prompt"), str):
            self.prompts[Path(event["path"]).stem.rpartition("_")[2]] = event["prompt"]
        elif kind == "change" and isinstance(event.get("options"), dict):
            self.changes.append(Change(step, str(event.get("id")), event["options"]))
        elif kind == "warning" and isinstance(event.get("message"), str):
            self.warnings = [*self.warnings[-19:], event["message"]]

    def _take_step(self, step: int, event: dict[str, Any]) -> None:
        loss, rates = number(event.get("loss")), event.get("lr")
        if math.isnan(loss):
            return
        count = len(self.steps) + 1
        self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        values = {"time": number(event.get("time")), "loss": loss, "smooth": self._mean / (1 - SMOOTHING**count)}
        values["norm"] = number(event.get("grad_norm"))
        if isinstance(rates, dict):
            values |= {f"lr {name}": number(rate) for name, rate in rates.items()}
        times = self.steps.columns.get("time")
        if times and values["time"] < times[-1]:  # the clock was set back: what lies between is no length of time
            self._session = len(self.steps)
        self.steps.append(step, values)

    def _rewind(self, step: int) -> None:
        """Forget what is done again from `step` on; at step 0 there was no state yet, and all is done again."""
        last = step if step else -1
        for table in (self.steps, self.memory, self.validation, self.speed):
            table.keep(last)
        self.changes = [change for change in self.changes if change.step <= last]
        self._session, self._mean = len(self.steps), 0.0
        smooth = self.steps.columns.get("smooth", array("f"))
        for i, loss in enumerate(self.steps.columns.get("loss", array("f"))):
            self._mean = SMOOTHING * self._mean + (1 - SMOOTHING) * loss
            smooth[i] = self._mean / (1 - SMOOTHING ** (i + 1))

    def pace(self) -> float | None:
        """Steps per second over the last half minute of training, None if it cannot be told yet.

        Steps are written in bunches, about once a second, with the time of writing: counted is from the end of one bunch to
        the end of the last.
        """
        with self._turn:
            steps, times = self.steps.steps, self.steps.columns.get("time")
            if times is None or len(steps) - self._session < 2:
                return None
            first = bisect_left(times, times[-1] - _PACE_SECONDS, self._session)
            first = bisect_right(times, times[min(first, len(times) - 1)] + 0.2, first) - 1
            seconds = times[-1] - times[first]
            return (steps[-1] - steps[first]) / seconds if seconds > 0 else None

    def answer(self, points: int) -> bytes:
        """Everything that is drawn, as JSON, the steps brought together to at most `points`.

        So that spikes stay visible, of the losses in one point the lowest and the highest are given. Points hold 2^k steps,
        so that they don't shift as the run goes on.
        """
        with self._turn:
            if self._answer[:2] != (self.version, points):
                content = {"version": self.version, **_drawn(self.steps, points)}
                tables = {"memory": self.memory, "validation": self.validation, "speed": self.speed}
                content |= {name: _thinned(table, points) for name, table in tables.items()}
                self._answer = (self.version, points, json.dumps(content, allow_nan=False, separators=(",", ":")).encode())
            return self._answer[2]


def number(value: Any) -> float:
    """A finite number that a float of four bytes holds, NaN for anything else."""
    return float(value) if type(value) in (int, float) and abs(value) < 3.4e38 else math.nan


def _starts(length: int, points: int) -> np.ndarray:
    """Where each point's rows begin, shape (P,), P <= points."""
    size = 1
    while length > size * points:
        size *= 2
    return np.arange(0, length, size)


def _ends(length: int, starts: np.ndarray) -> np.ndarray:
    return np.append(starts[1:], length) - 1


def _plain(values: np.ndarray) -> list[float | None]:
    """Five significant digits are more than a screen shows."""
    return [None if math.isnan(v) else float(f"{v:.5g}") for v in values.tolist()]


def _drawn(table: Table, points: int) -> dict[str, Any]:
    length = len(table)
    if not length:
        return {"steps": [], "low": [], "high": [], "smooth": [], "norm": [], "rates": {}}
    starts = _starts(length, points)
    ends = _ends(length, starts)
    columns = {name: np.asarray(column) for name, column in table.columns.items()}
    return {
        "steps": np.asarray(table.steps)[ends].tolist(),
        "low": _plain(np.minimum.reduceat(columns["loss"], starts)),
        "high": _plain(np.maximum.reduceat(columns["loss"], starts)),
        "smooth": _plain(columns["smooth"][ends]),
        "norm": _plain(np.fmax.reduceat(columns["norm"], starts)),
        "rates": {name[3:]: _plain(column[ends]) for name, column in columns.items() if name.startswith("lr ")},
    }


def _thinned(table: Table, points: int) -> dict[str, Any]:
    """Rows of a table, the last of each point."""
    ends = _ends(len(table), _starts(len(table), points)) if len(table) else np.arange(0)
    return {
        "steps": np.asarray(table.steps)[ends].tolist(),
        **{name: _plain(np.asarray(column)[ends]) for name, column in table.columns.items()},
    }


class CurvesOfRuns:
    """The curves of the runs looked at last; older ones are forgotten and read again when somebody asks."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._kept: OrderedDict[Path, Curves] = OrderedDict()

    def of(self, run: Run) -> Curves:
        """A run's curves, up to date."""
        with self._turn:
            curves = self._kept.setdefault(run.path, Curves(run))
            self._kept.move_to_end(run.path)
            while len(self._kept) > 1 and (len(self._kept) > _KEPT_RUNS or self._rows() > _KEPT_ROWS):
                self._kept.popitem(last=False)
        curves.update()
        return curves

    def _rows(self) -> int:
        return sum(len(c.steps) + len(c.memory) + len(c.speed) for c in self._kept.values())
