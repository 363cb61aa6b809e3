"""safetensors files written tensor by tensor, or with another header over the same bytes: never whole in memory. No torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from limner.errors import wrong
from limner.formats.header import BITS, MAX_HEADER_BYTES, Header, TensorInfo, read_header

_CHUNK_BYTES = 1 << 22

Told = Callable[[int, int], None]
"""Called with how many bytes are written, and how many there will be."""


def num_bytes(info: TensorInfo) -> int:
    bits = BITS[info.dtype]
    for side in info.shape:
        bits *= side
    return bits // 8


def in_order(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The order that keeps each tensor at a multiple of its numbers' size: the widest numbers first."""
    return sorted(tensors, key=lambda name: -BITS[tensors[name].dtype])


def write(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    metadata: Mapping[str, str],
    numbers: Callable[[str], Iterable[memoryview]],
    told: Told,
) -> None:
    """Write these tensors to a new file; `numbers` is asked for the bytes of one after the other, as `in_order` has them."""
    entries, end = dict[str, dict[str, object]](), 0
    for name in in_order(tensors):
        info = tensors[name]
        start, end = end, end + num_bytes(info)
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [start, end]}
    done = 0
    with path.open("xb") as file:
        file.write(_packed(entries, metadata))
        for name in entries:
            before = done
            for piece in numbers(name):
                file.write(piece)
                done += piece.nbytes
                told(done, end)
            assert done - before == num_bytes(tensors[name]), f"{name} is not of the size that was said"


def with_metadata(source: Path, target: Path, metadata: Mapping[str, str], told: Told) -> None:
    """Write a copy of a file, tensors and their order to the byte, that says this of itself. Raises UserError if the header
    would become too large, or the file changes meanwhile."""
    header, end = read_header(source), source.stat().st_size
    start = body(header, end)
    with source.open("rb") as read, target.open("xb") as file:
        file.write(_packed(_entries(header, start), metadata))
        read.seek(start)
        done = 0
        for piece in _pieces(read):
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


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_CHUNK_BYTES):
        yield piece
