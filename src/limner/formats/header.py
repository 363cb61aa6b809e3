"""Read the header of a safetensors file without reading the file: names, shapes, dtypes and metadata. No torch."""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from limner import parsing
from limner.errors import UserError, printable, wrong

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
_MAX_NAME = 1024  # patterns look through each
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
BITS |= {"I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
BITS |= {"C64": 64, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
CODES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""What headers call precisions."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Where each tensor's bytes begin and end in the file; empty for a pickled one."""


def read_header(path: Path, field: str | None = None) -> Header:
    """The header of `path`, checked against the file's size. Raises UserError (under `field`) if it cannot be trusted."""
    field = field or str(path)

    def damaged(why: str) -> UserError:
        return wrong(field, f"{path.name} is not a whole safetensors file: {why}.", "Download or copy it again.")

    try:
        size = _size(path, field)
        with path.open("rb") as file:
            first = file.read(8)
            if len(first) < 8:
                raise damaged("it is too short")
            (length,) = struct.unpack("<Q", first)
            if length < 2 or length > MAX_HEADER_BYTES or length + 8 > size:
                raise damaged(f"its header claims {length} bytes, the file has {size}")
            raw = parsing.json_value(file.read(length).decode("utf-8"), pairs=_table)
    except OSError as error:
        raise wrong(field, f"{path} cannot be read ({error.strerror}).", "Check the path and its permissions.") from None
    except ValueError:
        raise damaged("its header is not JSON, names a tensor twice, or holds more than any model") from None
    if not isinstance(raw, dict):
        raise damaged("its header is not a table")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged("its metadata are not text")
    tensors, places = dict[str, TensorInfo](), dict[str, tuple[int, int]]()
    for name, entry in raw.items():
        found = _tensor(entry) if len(name) <= _MAX_NAME else None
        if found is None:
            raise damaged(f"the entry of tensor {printable(repr(name), 60)} is malformed")
        tensors[name], (start, stop) = found
        places[name] = 8 + length + start, 8 + length + stop
    end = _end(places.values(), 8 + length)
    if end is None:
        raise damaged("its tensors overlap or leave a gap")
    if end != size:
        raise damaged(f"it should have {end} bytes and has {size}")
    return Header(tensors, metadata, places)


def _size(path: Path, field: str) -> int:
    about = path.stat()
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):  # a pipe would be waited for, for ever
        raise wrong(field, f"{path} cannot be read: it is no regular file.", "Give the path of a file.")
    return about.st_size


def _end(places: Iterable[tuple[int, int]], end: int) -> int | None:
    """Where the last tensor ends, None unless they lie one behind the other from `end` on."""
    for start, stop in sorted(places):
        if start != end:
            return None
        end = stop
    return end


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name comes twice")
    return table


def _tensor(entry: object) -> tuple[TensorInfo, tuple[int, int]] | None:
    """(what it is, where its bytes lie), None if the entry contradicts itself."""
    if not isinstance(entry, dict):
        return None
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS or not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        return None
    if prod(shape) * BITS[dtype] != 8 * (offsets[1] - offsets[0]):
        return None
    return TensorInfo(dtype, tuple(shape)), (offsets[0], offsets[1])


def _counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(i) is int and 0 <= i < 1 << 62 for i in value)
