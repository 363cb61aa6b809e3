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


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny.pictures(tmp_path / "pictures")
