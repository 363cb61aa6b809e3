"""kill -9 of trainers, runners and web servers at random moments, and SIGTERM at as many: `make torture
ONLY=tests/torture/test_kills.py`, about eight minutes.

LIMNER_KILLS_TRAINER=240, _RUNNER=30, _WEB=30 and _TERM=100 are how many of each; LIMNER_KILLS_SEED chooses the moments, and
LIMNER_KILLS_SECONDS ends each of the tests earlier.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

import killing
import killing_servers
import tiny
from limner.config import Config
from trainer import config

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def count(name: str, usual: int) -> int:
    return int(os.environ.get(f"LIMNER_KILLS_{name}", usual))


@pytest.fixture
def pictures(known_machine: None, tmp_path: Path) -> Path:
    return tiny.pictures(tmp_path / "pictures")


def chosen_for(kind: str, model: Path, pictures: Path) -> Config:
    sections = {
        "adapter": {"kind": kind},
        "train": {"steps": 30, "ema": 0.9, "accumulation": 2},
        "validation": {"share": 0.25, "every_steps": 7},
        "sample": {"prompts": ["picture number 1 --s 3 --w 16 --h 16", "a word --s 2 --w 16 --h 16"], "every_steps": 8},
        "output": {"state_every_steps": 2, "save_every_steps": 5, "keep_last": 2},
    }
    return config(model, pictures, **sections)


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_trainers(kind: str, model: Path, pictures: Path) -> None:
    began = time.monotonic()
    least = count("TRAINER", 240) // 2
    tally = killing.end_trainers(chosen_for(kind, model, pictures), pictures, least, 8)
    assert tally.count >= least  # the time may be over before
    print(f"\nkill -9 of the trainer, adapter.kind = {kind}: {tally}. {time.monotonic() - began:.0f} s")


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_polite_signals(kind: str, model: Path, pictures: Path) -> None:
    """Each time all finished steps are in a training state, and it is gone in time."""
    began = time.monotonic()
    least = count("TERM", 100) // 2
    tally = killing.end_trainers(chosen_for(kind, model, pictures), pictures, least, 8, signal.SIGTERM)
    assert tally.count >= least
    print(f"\nSIGTERM, adapter.kind = {kind}: {tally}; the slowest left after {tally.slowest:.2f} s. "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip


def test_runners(model: Path, pictures: Path) -> None:
    began, chosen = time.monotonic(), config(model, pictures)
    least = count("RUNNER", 30)
    tally = killing_servers.kill_runners(chosen, killing.Uninterrupted.of(chosen).found, least)
    assert tally.count >= least
    print(f"\nkill -9 of the runner: {tally}. {time.monotonic() - began:.0f} s")


def test_web_servers(model: Path, pictures: Path, tmp_path: Path) -> None:
    began, others = time.monotonic(), shutil.copytree(pictures, tmp_path / "others")
    with killing_servers.trained(config(model, pictures, train={"steps": 1_000_000})) as run:
        least = count("WEB", 30)
        tally, seconds = killing_servers.kill_servers(run, others, pictures, tmp_path / "web.txt", least)
        assert tally.count >= least
        steps = run.state().step
    print(f"\nkill -9 of the web server: {tally.count} times, {dict(tally.ended)}; the trainer went on, {steps} steps; a new "
          f"server told the truth within {seconds:.1f} s. {time.monotonic() - began:.0f} s")  # fmt: skip
