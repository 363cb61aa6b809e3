"""Weights that are read ahead are those of the files, whoever asks, however much waits already."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tiny
from limner.formats.ahead import READERS, Ahead
from limner.formats.base import denoiser_files, recognise
from limner.formats.known import FAMILIES
from limner.models import family as families
from limner.models.weights import Weights, is_roomy, kept_in, unscaled

CPU = torch.device("cpu")
UNET = FAMILIES["sd1"].parts["unet"]
PREFIX = "model.diffusion_model."


@pytest.fixture
def file(tmp_path: Path) -> Path:
    draws = torch.Generator().manual_seed(1)
    state = {f"{PREFIX}{i}.weight": torch.randn(40, 30, generator=draws) for i in range(20)}
    state |= {
        PREFIX + "input_blocks.0.0.weight": torch.randn(4, 4, generator=draws),
        PREFIX + "ids": torch.arange(70000, 70009),
    }
    save_file(state | {"first_stage_model.weight": torch.randn(3, 3)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def ahead_of(file: Path, dtype: torch.dtype | None = None, most_bytes: int = 1 << 30, *, is_begun: bool = True) -> Ahead:
    """Reading; `dtype` None: the numbers as they are."""
    found = Ahead([file], UNET, most_bytes)
    if is_begun:
        found.begin(None if dtype is None else kept_in(dtype))
    return found


def settled(found: Ahead) -> None:
    """Wait until all has been read."""
    until = time.monotonic() + 30
    while any(not future.done() for future in found._waiting.values()):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("waits", [True, False])
def test_they_are_those_of_the_file(file: Path, dtype: torch.dtype | None, waits: bool):
    plain, ahead = Weights([file]), ahead_of(file, dtype)
    found = Weights([file], ahead)
    if waits:
        settled(ahead)
        assert {n.startswith(PREFIX) for n in ahead._waiting} == {True} and len(ahead._waiting) == len(plain) - 1
    assert found.keys() == plain.keys()
    for name in reversed(list(plain)):  # not in the order in which they are read
        for _ in range(2):  # asked again they are read again
            first = found[name]
            assert torch.equal(first.to(dtype), plain[name].to(dtype)), name
            assert is_roomy(first) and first.data_ptr() % 64 == 0
    assert not ahead._waiting and ahead._held_bytes == 0


def test_what_was_not_begun_yet_is_read_by_who_asks(file: Path, monkeypatch: pytest.MonkeyPatch):
    goes_on, begun = threading.Event(), threading.Event()
    read = Ahead._read

    def slowly(ahead: Ahead, name: str):
        begun.set()
        assert goes_on.wait(30)
        return read(ahead, name)

    monkeypatch.setattr(Ahead, "_read", slowly)
    ahead = ahead_of(file)
    assert begun.wait(30)
    names = [n for n in Weights([file]) if n.startswith(PREFIX)]
    found = Weights([file], ahead)
    for name in names[READERS:]:  # all but what is being read
        assert torch.equal(found[name], Weights([file])[name])
    assert all(n in ahead._waiting for n in names[:READERS]) and len(ahead._waiting) == READERS
    goes_on.set()
    for name in names[:READERS]:
        assert torch.equal(found[name], Weights([file])[name])


def test_what_files_store_is_known_before(file: Path):
    found = ahead_of(file, is_begun=False)
    assert found.stay("F32") and not found.stay("BF16")
    save_file({PREFIX + "a": torch.zeros(2), PREFIX + "b": torch.zeros(2).half(), PREFIX + "c": torch.zeros(2).long()}, file)
    assert not ahead_of(file, is_begun=False).stay("F32")


def test_of_scaled_numbers_nothing_is_rounded_before_they_are_whole(file: Path):
    scaled = {"a.weight": torch.randn(6, 5), "b.weight": torch.randn(6, 5).to(torch.float8_e4m3fn)}
    scaled |= {f"{n}.scale_weight": torch.tensor([1.0 + 2**-20]) for n in "ab"}
    save_file({PREFIX + n: t for n, t in scaled.items()}, file)
    ahead = ahead_of(file, torch.bfloat16)
    assert ahead.stay("BF16")
    settled(ahead)
    for name in (PREFIX + "a.weight", PREFIX + "b.weight"):
        assert torch.equal(unscaled(Weights([file], ahead), name), unscaled(Weights([file]), name))


def test_they_wait_as_they_will_be_kept_and_no_more_than_so_many_bytes(file: Path):
    ahead = ahead_of(file, torch.bfloat16, 6000)
    settled(ahead)
    assert 6000 <= ahead._held_bytes < 6000 + 2 * 2400  # two were begun below it
    waiting = [t for f in ahead._waiting.values() if (t := f.result()) is not None]
    assert {t.dtype for t in waiting if t.ndim == 2 and t.is_floating_point()} == {torch.bfloat16}
    found = Weights([file], ahead)
    assert all(torch.equal(found[n].bfloat16(), Weights([file])[n].bfloat16()) for n in found if n.endswith("weight"))


def test_what_is_forgotten_is_read_again(file: Path):
    ahead = ahead_of(file)
    ahead.forget()
    ahead.begin()  # too late
    found = Weights([file], ahead)
    assert not ahead._waiting and all(torch.equal(found[n], t) for n, t in Weights([file]).items())


def test_without_threads_it_is_read_when_asked_for(file: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    found = Weights([file], ahead_of(file))
    assert torch.equal(found[PREFIX + "3.weight"], Weights([file])[PREFIX + "3.weight"])


def test_readers_end_with_the_main_thread(file: Path, tmp_path: Path):
    """A run that ends with an error meanwhile ends with its own exit code, and soon."""
    code = f"""
import sys, time, torch
from pathlib import Path
from limner.formats.ahead import Ahead
from limner.formats.known import FAMILIES
from limner.models.weights import kept_in
found = Ahead([Path({str(file)!r})], FAMILIES["sd1"].parts["unet"], 1 << 30)
read, begun = found._read, []
found._read = lambda name: begun.append(name) or time.sleep(3) or read(name)
found.begin(kept_in(torch.bfloat16))
while not begun: time.sleep(0.01)
sys.exit(2)
"""
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 2
    assert time.monotonic() - began < 20  # 22 tensors, two in three seconds, and before that torch is imported


def test_what_cannot_be_read_is_said_to_who_asks(file: Path):
    ahead = ahead_of(file, is_begun=False)
    found = Weights([file], ahead)
    with file.open("rb+") as cut:
        cut.truncate(file.stat().st_size // 2)
    ahead.begin()
    settled(ahead)
    with pytest.raises(ValueError, match="ends within"):
        [found[name] for name in found]


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_a_denoiser_is_loaded_from_them_unless_another_part_comes_first(tmp_path: Path, family: str):
    folder = tiny.build(tmp_path / "m", family=family)
    plain = tiny.loaded(folder)
    known = FAMILIES[family]
    base = recognise(str(folder))
    for comes_first in (False, True):
        found = Ahead(denoiser_files(base), known.parts[known.denoiser], 1 << 30)
        own = families.make(base, ahead=found)
        found.begin(kept_in(torch.bfloat16))
        settled(found)
        assert len(found._waiting) >= len(plain.denoiser.state_dict()) > 0
        if comes_first:
            own.load("vae", torch.float32, CPU)
            assert not found._waiting and own._ahead is None
        own.load("denoiser", torch.bfloat16, CPU)
        assert not found._waiting and own._ahead is None
        state = own.denoiser.state_dict()
        assert all(torch.equal(state[n], t.bfloat16()) for n, t in plain.denoiser.state_dict().items())
