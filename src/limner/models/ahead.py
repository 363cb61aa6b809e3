"""Weights that are read before the model is there that they are for.

The libraries that a family is made of take seconds to import, on one core: on another its denoiser is read meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Lock, Thread

import torch
from torch import Tensor

from limner.formats.known import Stored
from limner.models.weights import READERS, Weights

_MOST_BYTES = 4 << 30


class Ahead(Weights):
    """The tensors of files by name, of which those of one part may have been read when they are asked for.

    They wait in `dtype`, but for single numbers, by which others may be scaled; of a large part its first 4 GiB alone.
    """

    def __init__(self, files: Sequence[Path], part: Stored, dtype: torch.dtype) -> None:
        super().__init__(files)
        self._prefix, self._dtype = part.prefix_in(self) or "", dtype
        self._waiting: dict[str, Future[Tensor | None]] = {}
        self._left = deque[tuple[str, Future[Tensor | None]]]()
        self._held_bytes, self._lock = 0, Lock()

    def begin(self) -> None:
        """Read, in the order of the files. What cannot be read is said to who asks for it."""
        self._waiting = {name: Future() for name in self if name.startswith(self._prefix)}
        self._left.extend(self._waiting.items())
        for _ in range(READERS):
            Thread(target=self._read_on, daemon=True).start()  # who leaves meanwhile does not wait for them

    def forget(self) -> None:
        """None of it is asked for soon: give the memory back, and read no more."""
        self._left.clear()
        self._waiting = {}

    def __getitem__(self, name: str) -> Tensor:
        future = self._waiting.pop(name, None)
        tensor = future.result() if future is not None else None
        if tensor is None:
            return super().__getitem__(name)
        with self._lock:
            self._held_bytes -= tensor.nbytes
        return tensor

    def _read_on(self) -> None:
        while True:
            try:
                name, future = self._left.popleft()
            except IndexError:
                return
            try:
                future.set_result(self._read(name) if self._held_bytes < _MOST_BYTES else None)
            except Exception as error:
                future.set_exception(error)

    def _read(self, name: str) -> Tensor:
        tensor = super().__getitem__(name)
        if tensor.is_floating_point() and tensor.numel() > 1:
            tensor = tensor.to(self._dtype)
        with self._lock:
            self._held_bytes += tensor.nbytes
        return tensor
