"""Read the header of a safetensors file without reading the file: names, shapes, dtypes and metadata. No torch."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from limner.errors import UserError, wrong

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_BITS |= {"I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}


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


def read_header(path: Path, field: str | None = None) -> Header:
    """The header of `path`, checked against the file's size. Raises UserError (under `field`) if it cannot be trusted."""
    field = field or str(path)

    def damaged(why: str) -> UserError:
        return wrong(field, f"{path.name} is not a whole safetensors file: {why}.", "Download or copy it again.")

    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise damaged("it is too short")
            (length,) = struct.unpack("<Q", start)
            if length < 2 or length > MAX_HEADER_BYTES or length + 8 > size:
                raise damaged(f"its header claims {length} bytes, the file has {size}")
            raw = json.loads(file.read(length))
    except OSError as error:
        raise wrong(field, f"{path} cannot be read ({error.strerror}).", "Check the path and its permissions.") from None
    except (ValueError, RecursionError):
        raise damaged("its header is not JSON") from None
    if not isinstance(raw, dict):
        raise damaged("its header is not a table")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged("its metadata are not text")
    tensors, end = {}, 0
    for name, entry in raw.items():
        info, stop = _tensor(entry)
        if info is None:
            raise damaged("a tensor's entry is malformed")
        tensors[name], end = info, max(end, stop)
    if 8 + length + end != size:
        raise damaged(f"it should have {8 + length + end} bytes and has {size}")
    return Header(tensors, metadata)


def _tensor(entry: object) -> tuple[TensorInfo | None, int]:
    if not isinstance(entry, dict):
        return None, 0
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    whole = all(
        isinstance(v, list) and all(isinstance(i, int) and 0 <= i < 1 << 48 for i in v) for v in (shape, offsets)
    )
    if not isinstance(dtype, str) or not whole or len(offsets) != 2:
        return None, 0
    if dtype in _BITS and prod(shape) * _BITS[dtype] // 8 != offsets[1] - offsets[0]:
        return None, 0
    return TensorInfo(dtype, tuple(shape)), offsets[1]
