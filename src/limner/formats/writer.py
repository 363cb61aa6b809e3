"""A safetensors file written tensor by tensor, in any order, without ever being in memory. No torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Self

from limner.errors import wrong
from limner.formats.header import BITS, MAX_HEADER_BYTES, TensorInfo

_CHUNK_BYTES = 16 << 20
Numbers = bytes | bytearray | memoryview


class Writer:
    """Write the header at once, then the numbers of each tensor with `put` or `copy`, all of them before `close`."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
        # as the safetensors library orders them: so every tensor begins at a multiple of its own size
        names = sorted(tensors, key=lambda name: -BITS[tensors[name].dtype])
        entries, self._places, end = dict[str, object](), dict[str, tuple[int, int]](), 0
        if metadata:
            entries["__metadata__"] = dict(metadata)
        for name in names:
            info = tensors[name]
            start, end = end, end + prod(info.shape) * BITS[info.dtype] // 8
            entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [start, end]}
            self._places[name] = start, end
        header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
        header += b" " * (-len(header) % 8)
        if len(header) > MAX_HEADER_BYTES:
            raise wrong(str(path), "its header would be larger than safetensors allows.", "Remove metadata.")
        self._file = path.open("wb", buffering=0)
        self._data, self._missing = 8 + len(header), set(names)
        self._write(0, struct.pack("<Q", len(header)) + header)
        self._file.truncate(self._data + end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        assert kind is not None or not self._missing, f"never written: {sorted(self._missing)[:3]}"

    def put(self, name: str, numbers: Numbers) -> None:
        """The bytes of a tensor, little-endian, as long as its shape and dtype are."""
        start, end = self._places[name]
        view = memoryview(numbers).cast("B") if memoryview(numbers).nbytes else memoryview(b"")
        assert len(view) == end - start, f"{name} is {len(view)} bytes long, {end - start} were announced"
        self._write(self._data + start, view)
        self._missing.remove(name)

    def copy(self, name: str, source: Path, place: tuple[int, int], progress: Callable[[int], None] = lambda _: None) -> None:
        """The same from a place in a file; `progress` is told the bytes of each piece. Raises ValueError if it ends before."""
        start, end = self._places[name]
        assert place[1] - place[0] == end - start, f"{name} has another size than was announced"
        position, left = self._data + start, end - start
        with source.open("rb", buffering=0) as file:
            file.seek(place[0])
            while left:
                piece = file.read(min(left, _CHUNK_BYTES))
                if not piece:
                    raise ValueError(f"{source.name} ends within {name}")
                self._write(position, piece)
                position, left = position + len(piece), left - len(piece)
                progress(len(piece))
        self._missing.remove(name)

    def _write(self, position: int, content: Numbers) -> None:
        self._file.seek(position)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]
