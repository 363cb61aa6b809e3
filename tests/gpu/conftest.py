"""What the tests on a GPU share: they are passed over where there is none, and compute in true float32."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny
from limner.models.family import FAMILIES

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(reason)


@pytest.fixture(autouse=True)
def known_machine(home: Path, machine_file: Path) -> None:
    """What this machine is, known already in every home."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(machine_file, home / "machine.json")


@pytest.fixture(scope="session", autouse=True)
def exact() -> Iterator[None]:
    """Without TF32, which cuDNN's convolutions use unless they are told not to."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family. Read only."""
    folder = tmp_path_factory.mktemp("models")
    return {family: tiny.build(folder / family, family=family) for family in FAMILIES}
