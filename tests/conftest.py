"""What all tests share: a home of their own, one thread, and a tiny real model that is built once."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

_TOLD_BY = {"sd2": "sd1", "sd3": "flux"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is asked of every family `make test` asks of those that differ most: not of sd2 where the same is asked of sd1, nor
    of sd3 where it is of flux."""
    asked = {item.nodeid for item in items}
    for item in items:
        params = item.callspec.params.values() if hasattr(item, "callspec") else ()
        families = _TOLD_BY.keys() & {value for value in params if isinstance(value, str)}
        if any(re.sub(rf"\b{family}\b", _TOLD_BY[family], item.nodeid) in asked for family in families):
            item.add_marker("long")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """LIMNER_HOME of this test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LIMNER_HOME", str(folder))
    return folder


@pytest.fixture
def forks() -> Iterator[None]:
    """What this test starts with `python -m limner...`, in whatever depth, is forked: for all but the start itself as good."""
    import forked

    with forked.forks():
        yield


@pytest.fixture(scope="session")
def machine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this machine is, asked once; a copy in a home (`machine.json`) spares its runs the question."""
    from limner import machine

    folder = tmp_path_factory.mktemp("machine")
    machine.describe(folder)
    return folder / "machine.json"


@pytest.fixture
def known_machine(home: Path, machine_file: Path) -> None:
    """What this machine is, known already in the test's home; else each run asks torch anew."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(machine_file, home / "machine.json")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without a tokenizer: it is CLIP's own then, which trainers have ready. To read one takes longest."""
    import tiny

    folder = tiny.build(tmp_path_factory.mktemp("model") / "model")
    shutil.rmtree(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion 1 model in a diffusers folder. Read only: copy it to change it."""
    import tiny

    return tiny.build(tmp_path_factory.mktemp("tiny-model") / "model")
