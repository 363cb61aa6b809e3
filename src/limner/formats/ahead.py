"""Numbers that are read before they are asked for. No torch: it, and the libraries that a model is made of, take seconds to
import, on one core. On another a model's denoiser is read meanwhile.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Lock, Thread, main_thread
from typing import Any

from limner.formats.header import TensorInfo
from limner.formats.known import Stored, is_scale
from limner.formats.numbers import Numbers, NumbersFile

READERS = 2
"""Tensors that are read at a time: one alone waits for the system to give it memory."""

Turn = Callable[[Numbers, TensorInfo], Any]
"""Makes of a tensor's bytes what is to wait in their place: something with `nbytes`."""


class Ahead:
    """The tensors of one part of a model that lie in these files, no more than `most_bytes` of them at a time."""

    def __init__(self, files: Sequence[Path], part: Stored, most_bytes: int) -> None:
        places = {name: file for path in files for file in [NumbersFile(path)] for name in file.tensors}
        prefix, self._most_bytes = part.prefix_in(places) or "", most_bytes
        self._places = {name: file for name, file in places.items() if name.startswith(prefix)}
        self._turn: Turn = lambda numbers, _: numbers
        self._waiting: dict[str, Future[Any]] = {}
        self._left = deque[tuple[str, Future[Any]]]()
        self._held_bytes, self._is_forgotten, self._lock = 0, False, Lock()

    def stay(self, dtype: str) -> bool:
        """Whether numbers wait as they are if this (by its name in a header) is what they will be kept in: those of that kind,
        and those that are whole only together with others."""
        infos = [file.tensors[name] for name, file in self._places.items()]
        return self._is_scaled or {info.dtype for info in infos if "F" in info.dtype} <= {dtype}

    @property
    def _is_scaled(self) -> bool:
        return any(map(is_scale, self._places))

    def begin(self, turn: Turn | None = None) -> None:
        """Read, in the order of the files, unless it was forgotten already; let wait what `turn` makes of it."""
        with self._lock:
            if self._is_forgotten:
                return
            if turn is not None and not self._is_scaled:
                self._turn = turn
            self._waiting = {name: Future() for name in self._places}
            self._left.extend(self._waiting.items())
        try:
            for _ in range(max(1, min(READERS, (os.cpu_count() or 1) - 1))):  # who imports needs a core
                Thread(target=self._read_on).start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self.forget()

    def forget(self) -> None:
        """None of it is asked for soon: let it go, and read no more."""
        with self._lock:
            self._is_forgotten = True
            self._left.clear()
            self._waiting, self._places = {}, {}

    def take(self, name: str) -> Any:
        """What was read of a tensor, once; None if it was not: whoever asks is to read it."""
        future = self._waiting.pop(name, None)
        if future is None or future.cancel():
            return None
        if (found := future.result()) is not None:
            with self._lock:
                self._held_bytes -= found.nbytes
        return found

    def _read_on(self) -> None:
        # not daemons: torch must not be at work while the interpreter ends
        while main_thread().is_alive():
            try:
                name, future = self._left.popleft()
            except IndexError:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._read(name) if self._held_bytes < self._most_bytes else None)
            except Exception:  # whatever it was: who asks for it reads again, and is told
                future.set_result(None)

    def _read(self, name: str) -> Any:
        file = self._places[name]
        found = self._turn(file.read(name), file.tensors[name])
        with self._lock:
            self._held_bytes += found.nbytes
        return found
