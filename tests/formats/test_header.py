"""Headers of safetensors files: everything malformed is a UserError at once (reliability.md E01..E30)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headers import MALFORMED, file_of, tensor
from limner.errors import UserError
from limner.formats.header import TensorInfo, read_header


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
