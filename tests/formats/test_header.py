"""Headers of safetensors files: everything malformed is a UserError at once (reliability.md E01..E30)."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from limner.errors import UserError
from limner.formats.header import TensorInfo, read_header


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


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_a_users_matter_and_quickly(name: str, tmp_path: Path) -> None:
    (path := tmp_path / "x.safetensors").write_bytes(MALFORMED[name])
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        read_header(path, "model.base")
    assert time.process_time() - start < 1
    [finding] = caught.value.findings
    assert finding.field == "model.base" and finding.remedy
    assert finding.message.startswith("x.safetensors is not a whole safetensors file: ")
    assert str(finding).isprintable() and len(str(finding)) < 400


def test_without_a_field_the_file_is_named(tmp_path: Path) -> None:
    (path := tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        read_header(path)
    assert caught.value.findings[0].field == str(path)


@pytest.mark.parametrize("name", ["missing", ".", "missing/below"])
def test_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_header(tmp_path / name, "model.base")


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = {
        "a.b": torch.zeros(2, 3),
        "c": torch.zeros(4, dtype=torch.bfloat16),
        "d": torch.tensor(1),
        "e": torch.zeros(0, 5),
    }
    tensors |= {"f": torch.zeros(3, dtype=torch.float8_e4m3fn), "g": torch.zeros(2, dtype=torch.bool)}
    save_file(tensors, path := tmp_path / "x.safetensors", {"k": "ü 猫"})
    header = read_header(path)
    assert header.metadata == {"k": "ü 猫"}
    assert header.tensors == {
        "a.b": TensorInfo("F32", (2, 3)),
        "c": TensorInfo("BF16", (4,)),
        "d": TensorInfo("I64", ()),
        "e": TensorInfo("F32", (0, 5)),
        "f": TensorInfo("F8_E4M3", (3,)),
        "g": TensorInfo("BOOL", (2,)),
    }


def test_odd_but_whole_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    names = ["\x00", "../../x", "t.__class__.__base__.__getattribute__", "<img src=x onerror=alert(1)>", "\x1b[2J", ""]
    path.write_bytes(
        file_of({n: tensor(4 * i, 4 * i + 4) for i, n in enumerate(names)} | {"__metadata__": {}}, bytes(4 * len(names)))
    )
    assert list(read_header(path).tensors) == names
    path.write_bytes(file_of({"a": tensor(0, 0, [0, 1 << 60])}))
    assert read_header(path).tensors["a"].shape == (0, 1 << 60)
    path.write_bytes(file_of({}))
    assert read_header(path).tensors == {}


def test_a_sparse_file_is_not_read_beyond_its_header(tmp_path: Path) -> None:
    path, size = tmp_path / "x.safetensors", 1 << 42
    header = file_of({"a": tensor(0, size, [1 << 40])})
    try:
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + size)
    except OSError:
        pytest.skip("this file system has no files of 4 TiB")
    assert read_header(path).tensors["a"].shape == (1 << 40,)


def test_many_names(tmp_path: Path) -> None:
    count = 10_000
    (path := tmp_path / "x.safetensors").write_bytes(
        file_of({f"t{i}": tensor(4 * i, 4 * i + 4) for i in range(count)}, bytes(4 * count))
    )
    start = time.process_time()
    assert len(read_header(path).tensors) == count
    assert time.process_time() - start < 2
