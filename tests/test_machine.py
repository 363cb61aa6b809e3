"""What is kept of a machine that was asked: its answer, and for a while its failure."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from limner import disk, machine
from limner.machine import NoAnswer

CPU = {"torch": "2.13.0", "torch_build": "cpu", "cores": 2, "memory_mib": 16_000, "gpu_without_torch": ""}
CPU |= {"devices": [{"kind": "cpu", "name": "x86", "memory_mib": 16_000, "bf16": True}]}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the child process will say, in turn."""
    out: list[Any] = []

    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        answer = out.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(words, 0, json.dumps(answer) if answer else "", "ImportError: libcuda")

    monkeypatch.setattr(machine.subprocess, "run", run)
    return out


@pytest.mark.parametrize(
    ("answer", "said"),
    [(None, "cannot be used here: ImportError: libcuda"), (subprocess.TimeoutExpired("x", 120), "no answer in two minutes")],
)
def test_a_failure_stands_for_a_minute(home: Path, answers: list[Any], answer: Any, said: str) -> None:
    answers += [answer, CPU]
    for _ in range(3):
        with pytest.raises(NoAnswer) as raised:
            machine.describe(home)
        assert raised.value.findings[0].field == "torch" and said in raised.value.findings[0].message
    kept = disk.read_json(home / "machine.json")
    disk.write_json(home / "machine.json", kept | {"time": kept["time"] - machine.ASKED_AGAIN_SECONDS})
    assert machine.describe(home).best().kind == "cpu" and answers == []
    assert machine.describe(home).best().kind == "cpu", "an answer is kept"


def test_who_asks_anew_is_not_given_a_failure_that_is_kept(home: Path, answers: list[Any]) -> None:
    answers += [None, CPU]
    with pytest.raises(NoAnswer):
        machine.describe(home)
    assert machine.describe(home, refresh=True).cores == 2 and machine.describe(home).cores == 2


@pytest.mark.parametrize("damage", [{"failed": "x"}, {"time": "x"}, {"time": None}, {"failed": {"field": "torch"}}])
def test_a_damaged_failure_is_asked_anew(home: Path, answers: list[Any], damage: dict[str, Any]) -> None:
    answers += [None, CPU]
    with pytest.raises(NoAnswer):
        machine.describe(home)
    disk.write_json(home / "machine.json", disk.read_json(home / "machine.json") | damage)
    assert machine.describe(home).cores == 2
