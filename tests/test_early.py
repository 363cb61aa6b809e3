"""The model is in the system's memory before anybody asks for it, and what is wrong with it is nobody's trouble here."""

import ctypes
import io
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny
from limner import cli, early, runs
from limner.config import Config, files


def share_in_memory(path: Path) -> float:
    """Of a file's pages."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        place = ctypes.c_char.from_buffer(mapped)
        there = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        assert ctypes.CDLL(None).mincore(ctypes.byref(place), ctypes.c_size_t(size), there) == 0
        del place
    return sum(page & 1 for page in there) / len(there)


def read(config: Config) -> None:
    reader = early.read_early(config)
    assert reader is not None
    reader.join(60)
    assert not reader.is_alive()


def forgotten(path: Path) -> Path:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says what is in its memory")
def test_the_denoiser_is_read(tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "m", family="sdxl")
    (file,) = (folder / "unet").glob("*.safetensors")
    if share_in_memory(forgotten(file)) > 0.5:
        pytest.skip("this file system keeps everything in memory")
    read(files.build({"model": {"base": str(folder)}}, {}))
    assert share_in_memory(file) == 1


@pytest.mark.parametrize("base", ["somebody/elsewhere", "a/b--c", "missing.safetensors", "a folder", "damaged.safetensors"])
def test_what_cannot_be_read_is_said_by_others(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a folder").mkdir()
    Path("damaged.safetensors").write_bytes(b"\xff" * 99)
    faults = []
    monkeypatch.setattr("threading.excepthook", faults.append)
    read(files.build({"model": {"base": base}}, {}))
    assert faults == []


def test_no_more_is_read_than_there_is_room_for(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(io.FileIO):
        def readinto(self, piece: Any, /) -> int:
            counts.append(super().readinto(piece))
            return counts[-1]

    counts, open_it = list[int](), Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *a, **k: Counted(path) if k.get("buffering") == 0 else open_it(path, *a, **k)
    )
    monkeypatch.setattr(early, "_PIECE_BYTES", 4096)
    model = files.build({"model": {"base": str(tiny_model)}}, {}).model
    (file,) = (tiny_model / "unet").glob("*.safetensors")
    for is_there in (False, True):
        monkeypatch.setattr(early, "_is_there", lambda *_, is_there=is_there: is_there)
        for left, expected in ((1 << 30, file.stat().st_size), (5000, 8192)):
            counts.clear()
            early._read(model, left)
            assert sum(counts) == (0 if is_there else expected)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says what is in its memory")
def test_what_is_in_memory_is_known(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    share = share_in_memory(forgotten(path))
    with path.open("rb") as file:
        if share == 0:
            assert not early._is_there(file.fileno(), 1 << 19)
        file.read()
        assert early._is_there(file.fileno(), 1 << 19)
        assert not early._is_there(file.fileno(), 1 << 20)  # nothing lies there


def test_only_for_a_run_that_begins_now(tiny_model: Path) -> None:
    raw = {"model": {"base": str(tiny_model)}}
    config = files.build(raw, {})
    assert early.read_early(files.build(raw | {"launch": {"target": "slurm"}}, {})) is None
    run = runs.create(config)
    for status in ("queued", "done", "waiting"):
        run.write_state(runs.State(status))
        assert (early.read_early(config) is None) == (status == "waiting")


def test_it_is_asked_for_by_the_command(known_machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(early, "read_early", asked.append)
    assert cli.train("--data.path", str(tmp_path / "missing"), "--launch.device", "cpu") == 2
    assert [config.launch.device for config in asked] == ["cpu"]
