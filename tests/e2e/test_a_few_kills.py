"""kill -9 in short: `make torture ONLY=tests/torture/test_kills.py` does it hundreds of times."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import killing
import killing_servers
from limner.config import Config
from trainer import config

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="POSIX signals")]


def lora(model: Path, pictures: Path) -> Config:
    return config(
        model, pictures, train={"steps": 20, "ema": 0.9}, validation={"share": 0.25, "every_steps": 5},
        sample={"prompts": ["picture number 1 --s 2 --w 16 --h 16"], "every_steps": 6},
        output={"state_every_steps": 2, "save_every_steps": 5, "keep_last": 1},
    )  # fmt: skip


@pytest.mark.long
def test_a_trainer_killed_three_times(tiny_model: Path, pictures: Path) -> None:
    tally = killing.end_trainers(lora(tiny_model, pictures), pictures, 3, 3)
    print(tally)
    assert tally.count == 3  # what follows each kill is looked at in there; it gives up when time runs out


@pytest.mark.long
def test_a_runner_killed_twice(tiny_model: Path, pictures: Path) -> None:
    chosen = config(tiny_model, pictures)
    tally = killing_servers.kill_runners(chosen, killing.Uninterrupted.of(chosen).found, 2, together=2)
    print(tally)
    assert tally.count == 2


def test_a_server_killed_while_a_run_is_trained(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    others = shutil.copytree(pictures, tmp_path / "others")
    with killing_servers.trained(config(tiny_model, pictures, train={"steps": 100_000})) as run:
        tally, seconds = killing_servers.kill_servers(run, others, pictures, tmp_path / "web.txt", 1)
    print(tally.count, f"the truth after {seconds:.1f} s")
    assert tally.count == 1
