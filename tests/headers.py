"""Files that consist of a header, and of a hole where the numbers would be: full-size models without their weight; and headers
that lie."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"


def published(family: str, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Names and shapes of a family's published file."""
    lines = (GOLDEN / f"{family}_original_keys.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ", 1) for line in lines]
    return {prefix + name: tuple(json.loads(shape)) for name, shape in pairs}


def single_file(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file with these tensors; their bytes are a hole in the file."""
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)
    return path


def parts_beside(folder: Path, channels: int, prefix: str = "") -> dict[str, Path]:
    """A VAE, CLIPs and a T5 as ComfyUI's users have them, told by one tensor each."""
    folder.mkdir(parents=True, exist_ok=True)
    markers = {
        "vae": {f"{prefix}decoder.conv_in.weight": (512, channels, 3, 3)},
        "clip_l": {"text_model.embeddings.token_embedding.weight": (49408, 768)},
        "clip_g": {"text_model.embeddings.token_embedding.weight": (49408, 1280)},
        "t5": {"shared.weight": (32128, 4096), "encoder.final_layer_norm.weight": (4096,)},
    }
    return {name: single_file(folder / f"my {name}.safetensors", shapes) for name, shapes in markers.items()}


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(start: int, stop: int, shape: list | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


GOOD = {"a": tensor(0, 8), "b": tensor(8, 16)}
TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'

MALFORMED: dict[str, bytes] = {
    "E01 nothing": b"",
    "E02 seven bytes": b"1234567",
    "E03 length 0": struct.pack("<Q", 0) + b"{}",
    "E04 length 2^63": struct.pack("<Q", 1 << 63) + b"{}",
    "E05 length 2^64-1": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "E06 a header over the limit": struct.pack("<Q", 100_000_001) + b"{}",
    "E07 not JSON": file_of(b"this is no json"),
    "E08 not UTF-8": file_of(b'{"\xff\xfe": 1}'),
    "E08 UTF-16": file_of(json.dumps(GOOD).encode("utf-16"), bytes(16)),
    "E09 a list": file_of([]),
    "E09 null": file_of(None),
    "E09 a text": file_of("x"),
    "E10 overlap": file_of({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "E11 hole": file_of({"a": tensor(0, 8), "b": tensor(12, 16)}, bytes(16)),
    "E11 hole at the start": file_of({"a": tensor(4, 8)}, bytes(8)),
    "E12 trailing bytes": file_of(GOOD, bytes(17)),
    "E13 short data": file_of(GOOD, bytes(15)),
    "E13 no data": file_of(GOOD),
    "E14 negative offset": file_of({"a": tensor(-4, 4)}, bytes(4)),
    "E14 offsets reversed": file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
    "E15 shape and size differ": file_of({"a": tensor(0, 8, [3])}, bytes(8)),
    "E15 negative shape": file_of({"a": tensor(0, 8, [-2])}, bytes(8)),
    "E16 overflow": file_of({"a": tensor(0, 8, [1 << 32, 1 << 32])}, bytes(8)),
    "E17 unknown dtype": file_of({"a": tensor(0, 8, dtype="F33")}, bytes(8)),
    "E17 dtype a number": file_of({"a": tensor(0, 8, dtype=32)}, bytes(8)),
    "E17 dtype a list": file_of({"a": tensor(0, 8, dtype=["F32"])}, bytes(8)),
    "E18 no offsets": file_of({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "E18 one offset": file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}, bytes(8)),
    "E18 offsets as text": file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]}}, bytes(8)),
    "E18 booleans": file_of({"a": {"dtype": "U8", "shape": [True], "data_offsets": [False, True]}}, bytes(1)),
    "E18 fractions": file_of({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0.0, 1.0]}}, bytes(1)),
    "E18 an entry that is a list": file_of({"a": [1]}, bytes(8)),
    "E18 an entry that is null": file_of({"a": None}, bytes(8)),
    "E18 NaN": file_of(b'{"a": NaN}'),
    "E19 a name twice": file_of(TWICE, bytes(8)),
    "E20 metadata not text": file_of({"__metadata__": {"a": 1}, **GOOD}, bytes(16)),
    "E20 metadata a list": file_of({"__metadata__": ["a"], **GOOD}, bytes(16)),
    "E21 very deep": file_of(b'{"a":' * 100_000),
    "E21 very deep lists": file_of(b'{"a":' + b"[" * 100_000),
    "a number of 5000 digits": file_of(b'{"a":' + b"9" * 5000 + b"}"),
    "a pickle": b"\x80\x02}q\x00X\x05\x00\x00\x00stateq\x01K\x01s." * 9,
    "a zip": b"PK\x03\x04" + bytes(200),
    "a web page": b"<!DOCTYPE html><html>Access denied</html>" * 9,
}
