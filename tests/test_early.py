"""The model is in the system's memory before anybody asks for it, and what is wrong with it is nobody's trouble here."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

import pytest

import tiny
from limner.config.model import Model
from limner.early import read_early

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux says what is in its memory")


def share_in_memory(path: Path) -> float:
    """Of a file's pages."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as map:
        place = ctypes.c_char.from_buffer(map)
        there = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        assert ctypes.CDLL(None).mincore(ctypes.byref(place), ctypes.c_size_t(size), there) == 0
        del place
    return sum(page & 1 for page in there) / len(there)


def forgotten(path: Path) -> Path:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def test_the_denoiser_is_read(tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "m", family="sdxl")
    (file,) = (folder / "unet").glob("*.safetensors")
    if share_in_memory(forgotten(file)) > 0.5:
        pytest.skip("this file system keeps everything in memory")
    read_early(Model(base=str(folder))).join(60)
    assert share_in_memory(file) == 1


@pytest.mark.parametrize("base", ["somebody/elsewhere", "missing.safetensors", "a folder", "damaged.safetensors"])
def test_what_cannot_be_read_is_said_by_others(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a folder").mkdir()
    Path("damaged.safetensors").write_bytes(b"\xff" * 99)
    faults = []
    monkeypatch.setattr("threading.excepthook", faults.append)
    read_early(Model(base=base)).join(60)
    assert faults == []
