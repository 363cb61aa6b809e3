"""The numbers of safetensors files, read tensor by tensor as bytes, into memory that leaves room behind it. No torch.

Not mapped: the pages of a map count as this process's memory, and one that is cut short under it ends the process.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from limner.formats.header import read_header

ROOM_BYTES = 256
"""Behind a tensor: once it is free, an aligned block of as many bytes has its place. glibc (2.36) first looks for so much more
than that, and would not take one that fits."""
_ALIGNED_BYTES = 64

Numbers = np.ndarray
"""The bytes of a tensor, a part of the memory they lie in (`base`)."""


def _roomy(num_bytes: int) -> Numbers:
    """Aligned memory with that room behind it."""
    memory = np.empty(num_bytes + _ALIGNED_BYTES + ROOM_BYTES, np.uint8)
    start = -memory.ctypes.data % _ALIGNED_BYTES
    return memory[start : start + num_bytes]


class NumbersFile:
    """A safetensors file. Raises UserError if its header cannot be trusted."""

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self.path, self.tensors, self._places = path, header.tensors, header.places

    def read(self, name: str) -> Numbers:
        """Raises OSError and ValueError if the file changes meanwhile."""
        start, stop = self._places[name]
        numbers = _roomy(stop - start)
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            left = numbers.data
            while left and (count := file.readinto(left)):
                left = left[count:]
        if left:
            raise ValueError(f"{self.path.name} ends within {name}")
        return numbers
