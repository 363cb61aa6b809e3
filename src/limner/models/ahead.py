"""Weights that are read before the model is there that they are for.

The libraries that a family is made of take seconds to import, on one core: on another its denoiser is read meanwhile.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Lock, Thread, main_thread

import torch
from torch import Tensor

from limner.formats.known import Stored
from limner.models.given_back import give_holes_back
from limner.models.saving import is_scale
from limner.models.weights import READERS, Weights, in_dtype


class Ahead(Weights):
    """The tensors of files by name, of which those of one part may have been read when they are asked for.

    They wait in `dtype`, but for files whose numbers are scaled, and no more than `most_bytes` of them.
    """

    def __init__(self, files: Sequence[Path], part: Stored, dtype: torch.dtype, most_bytes: int) -> None:
        super().__init__(files)
        self._prefix, self._most_bytes = part.prefix_in(self) or "", most_bytes
        self._dtype = None if any(map(is_scale, self)) else dtype
        self._waiting: dict[str, Future[Tensor | None]] = {}
        self._left = deque[tuple[str, Future[Tensor | None]]]()
        self._held_bytes, self._lock = 0, Lock()

    def begin(self) -> None:
        """Read, in the order of the files."""
        self._waiting = {name: Future() for name in self if name.startswith(self._prefix)}
        self._left.extend(self._waiting.items())
        try:
            for _ in range(max(1, min(READERS, (os.cpu_count() or 1) - 1))):  # who imports needs a core
                Thread(target=self._read_on).start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self.forget()

    def forget(self) -> None:
        """None of it is asked for soon: give the memory back, and read no more."""
        self._left.clear()
        self._waiting = {}
        give_holes_back()

    def __getitem__(self, name: str) -> Tensor:
        future = self._waiting.pop(name, None)
        tensor = future.result() if future is not None else None
        if tensor is None:
            return super().__getitem__(name)
        with self._lock:
            self._held_bytes -= tensor.nbytes
        return tensor

    def _read_on(self) -> None:
        # not daemons: torch must not be at work while the interpreter ends
        while main_thread().is_alive():
            try:
                name, future = self._left.popleft()
            except IndexError:
                return
            try:
                future.set_result(self._read(name) if self._held_bytes < self._most_bytes else None)
            except Exception:  # whatever it was: who asks for it reads again, and is told
                future.set_result(None)

    def _read(self, name: str) -> Tensor:
        tensor = super().__getitem__(name)
        if self._dtype is not None and tensor.is_floating_point():
            tensor = in_dtype(tensor, self._dtype)
        with self._lock:
            self._held_bytes += tensor.nbytes
        return tensor
