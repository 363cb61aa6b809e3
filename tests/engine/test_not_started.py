"""A trainer that cannot begin: who writes it into the run's state."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from limner import runs
from limner.config import Config
from limner.engine import __main__ as engine
from limner.runs import State


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_main_trainer_writes_it(rank: int, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one does not know whether the run goes on without it."""

    def fails(*_: Any, **__: Any) -> NoReturn:
        raise ImportError("no such library")

    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # the trainer puts its own in their places
    monkeypatch.setattr("limner.engine.journal.Journal", fails)
    run = runs.create(Config())
    run.write_state(State(status="running", step=7))
    assert engine.main(str(run.path)) == 1
    said = json.loads((run.path / "state.json").read_text())
    assert (said["status"], "no such library" in said["error"]) == (("running", False) if rank else ("failed", True))
    assert not run.is_locked()
