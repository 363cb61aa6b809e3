"""What the trainer tells the world: the state file, the step events, and when to look at requests.

Losses stay on the device and are read back together, about once a second: the step never waits for the device.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from limner.engine.meter import Meter
from limner.engine.trackers import Tracker
from limner.errors import printable, wrong
from limner.runs import Run, State
from limner.state import StateTeller

_FLUSH_SECONDS = 1.0


class Journal(StateTeller):
    """The record of a run that a machine's first process keeps, the main one on the main machine. In others it is silent."""

    def __init__(self, run: Run, *, is_main: bool, sign: Callable[[str], object] = str) -> None:
        super().__init__(run, is_silent=not is_main)
        self.is_main = is_main
        self.sign = sign
        """Tells the watchdog that the run gets on, and in which phase ("step": one is finished)."""
        self.trackers: list[Tracker] = []
        self.meter: Meter | None = None
        self._process = psutil.Process()
        self._folder = _identity(run.path) if is_main else None
        self._pending: list[tuple[int, Tensor, Tensor | None, dict[str, float]]] = []
        self._flushed = 0.0

    def say(self, *args: Any, **values: Any) -> None:
        self._require_folder()
        super().say(*args, **values)
        self.sign(self.state.phase)

    def _require_folder(self) -> None:
        """Raises UserError if the run's folder was deleted or moved away: another of its name is not to be begun there."""
        if self._folder is None or (found := _identity(self.run.path)) == self._folder:
            return
        # file systems of other machines give the same folder other numbers now and then
        if found is not None and State.read(self.run.path / "state.json").pid == os.getpid():
            self._folder = found
        else:
            said = "this run's folder was deleted or moved while it trained; nothing more can be saved there."
            raise wrong(str(self.run.path), said, "Start the run anew, or move its folder back and resume it.")

    @contextlib.contextmanager
    def waiting_for(self, phase: str) -> Iterator[None]:
        """Inside, what was begun in another phase is waited for."""
        self.sign(phase)
        yield
        self.sign(self.state.phase)

    def event(self, kind: str, **values) -> None:
        if not self.is_main:
            return
        try:
            self.run.event(kind, **values)
        finally:  # a full disk is no reason not to tell them of the end
            self._tell(kind, values)

    def _tell(self, kind: str, values: dict[str, Any]) -> None:
        for tracker in list(self.trackers):
            try:
                tracker.note(kind, values)
            except tracker.faults as error:
                self.trackers.remove(tracker)
                said = f"{tracker.name} is told nothing more: {printable(f'{type(error).__name__}: {error}')}"
                self.event("warning", message=said)

    def step(self, step: int, loss: Tensor, norm: Tensor | None, rates: dict[str, float]) -> None:
        """Note a finished step; `loss` and `norm` are read back later."""
        self.sign("step")
        self._pending.append((step, loss.detach(), norm, rates))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Read the noted losses back and write their events. Of one that is not finite there is none: see `engine.watch`."""
        pending, self._pending, self._flushed = self._pending, [], time.monotonic()
        self._require_folder()
        if not pending:
            return
        losses = torch.stack([loss for _, loss, _, _ in pending]).tolist()
        norms = [None if norm is None else float(norm) for _, _, norm, _ in pending]
        for (step, _, _, rates), loss, norm in zip(pending, losses, norms, strict=True):
            if not math.isfinite(loss):
                continue
            values = {} if norm is None or not math.isfinite(norm) else {"grad_norm": norm}
            self.event("step", step=step, loss=loss, lr=rates, **values)
        memory = {"memory_mib": self._process.memory_info().rss >> 20}
        if torch.cuda.is_available():
            memory["device_mib"] = torch.cuda.max_memory_allocated() >> 20
        self.say(progress=(pending[-1][0], self.state.steps), step=pending[-1][0])
        self.event("memory", step=pending[-1][0], **memory)
        if self.meter is not None and (speed := self.meter.read()):
            self.event("speed", step=pending[-1][0], **speed)


def _identity(folder: Path) -> tuple[int, int] | None:
    """What stays the same as long as a folder does; None if there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
