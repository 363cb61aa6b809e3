"""Fixtures of the tests that run trainers: the machine is described once, the pictures are drawn once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tiny
from limner import machine


@pytest.fixture(scope="session")
def machine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machine")
    machine.describe(folder)
    return folder / "machine.json"


@pytest.fixture(autouse=True)
def known_machine(home: Path, machine_file: Path) -> None:
    """What this machine is, known already in every home; else each run asks torch anew."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(machine_file, home / "machine.json")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny.pictures(tmp_path / "pictures")
