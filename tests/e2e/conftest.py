"""Fixtures of the tests that run trainers: the machine is described once, the pictures are drawn once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tiny


@pytest.fixture(autouse=True)
def known_machine(home: Path, machine_file: Path) -> None:
    """What this machine is, known already in every home; else each run asks torch anew."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(machine_file, home / "machine.json")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without a tokenizer: it is CLIP's own then, which trainers have ready. To read one takes longest."""
    folder = tiny.build(tmp_path_factory.mktemp("tiny-model") / "model")
    shutil.rmtree(folder / "tokenizer")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny.pictures(tmp_path / "pictures")
