"""Fixtures of the tests that run trainers: the machine is described once, the pictures are drawn once."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny


@pytest.fixture(autouse=True)
def ready(known_machine: None) -> None:
    """In every home."""


@pytest.fixture(scope="session")
def tiny_model(model: Path) -> Path:
    return model


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny.pictures(tmp_path / "pictures")
