"""safetensors files written tensor by tensor, or with another header over the same bytes: never whole in memory. No torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Self

from limner.errors import wrong
from limner.formats.header import BITS, MAX_HEADER_BYTES, Header, TensorInfo, read_header

_CHUNK_BYTES = 16 << 20

Numbers = bytes | bytearray | memoryview
Told = Callable[[int, int], None]
"""Called with how many bytes are written, and how many there will be."""


def num_bytes(info: TensorInfo) -> int:
    bits = BITS[info.dtype]
    for side in info.shape:
        bits *= side
    return bits // 8


class Writer:
    """Write the header at once, then the numbers of each tensor, in any order, all of them before it is closed."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> None:
        # as the safetensors library orders them: so every tensor begins at a multiple of its own size
        self.names = sorted(tensors, key=lambda name: -BITS[tensors[name].dtype])
        entries, self._places, self.num_bytes = dict[str, object](), dict[str, tuple[int, int]](), 0
        for name in self.names:
            info = tensors[name]
            start, self.num_bytes = self.num_bytes, self.num_bytes + num_bytes(info)
            entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [start, self.num_bytes]}
            self._places[name] = start, self.num_bytes
        header = _packed(entries, metadata)
        self._file = path.open("wb", buffering=0)
        self._data, self._missing = len(header), set(self.names)
        self._write(0, header)
        self._file.truncate(self._data + self.num_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        assert kind is not None or not self._missing, f"never written: {sorted(self._missing)[:3]}"

    def put(self, name: str, pieces: Iterable[Numbers], told: Callable[[int], None] = lambda _: None) -> None:
        """The bytes of a tensor, little-endian, as long as its shape and dtype are; `told` of the length of each piece."""
        start, end = self._places[name]
        place = self._data + start
        for piece in pieces:
            view = memoryview(piece).cast("B") if memoryview(piece).nbytes else memoryview(b"")
            assert place + len(view) <= self._data + end, f"{name} is longer than was announced"
            self._write(place, view)
            place += len(view)
            told(len(view))
        if place != self._data + end:
            raise ValueError(f"{name} ends after {place - self._data - start} of {end - start} bytes")
        self._missing.remove(name)

    def copy(self, name: str, source: Path, place: tuple[int, int], told: Callable[[int], None] = lambda _: None) -> None:
        """The same from a place in a file. Raises ValueError if it ends before."""
        with source.open("rb", buffering=0) as file:
            file.seek(place[0])
            self.put(name, _pieces(file, place[1] - place[0]), told)

    def _write(self, position: int, content: Numbers) -> None:
        self._file.seek(position)
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]


def with_metadata(source: Path, target: Path, metadata: Mapping[str, str], told: Told) -> None:
    """Write a copy of a file, tensors and their order to the byte, that says this of itself. Raises UserError if the header
    would become too large, or the file changes meanwhile."""
    header, end = read_header(source), source.stat().st_size
    start = body(header, end)
    with source.open("rb") as read, target.open("xb") as file:
        file.write(_packed(_entries(header, start), metadata))
        read.seek(start)
        done = 0
        for piece in _pieces(read, end - start):
            file.write(piece)
            done += len(piece)
            told(done, end - start)
        if done != end - start:
            raise wrong(str(source), "it was changed while it was read.", "Try again.")


def body(header: Header, size: int) -> int:
    """Where the tensors' bytes begin in its file, which has `size` bytes."""
    return min((start for start, _ in header.places.values()), default=size)


def _entries(header: Header, start: int) -> dict[str, object]:
    return {
        name: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [place - start for place in header.places[name]]}
        for name, info in header.tensors.items()
    }


def _packed(entries: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    content = ({"__metadata__": dict(metadata)} if metadata else {}) | dict(entries)
    try:
        raw = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        raise wrong("file", "one of its names is no text.", "Remove it, or make the file anew.") from None
    raw += b" " * (-len(raw) % 8)  # so that the numbers behind it are aligned
    if len(raw) > MAX_HEADER_BYTES:
        raise wrong("metadata", "is more than a safetensors file can hold.", "Make it shorter.")
    return struct.pack("<Q", len(raw)) + raw


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The next `size` bytes, or as many as there are."""
    while size and (piece := file.read(min(size, _CHUNK_BYTES))):
        size -= len(piece)
        yield piece
