"""Files of strangers through every door they come in by: words, quickly, and nothing done. See tests/corpus.py and tests/oracles.py."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import oracles
from corpus import CASES, ELSEWHERE

pytestmark = [pytest.mark.long, pytest.mark.skipif(os.name == "nt", reason="pipes, links and /proc")]
PAIRS = [(name, door) for name, case in CASES.items() for door in case.doors]
LAST = {"B": 26, "C": 26, "D": 26, "E": 30, "G": 24}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, machine_file: Path) -> dict[tuple[str, str], oracles.Answer]:
    found = dict(oracles.answers("corpus", tmp_path_factory.mktemp("corpus") / "root", machine_file))
    times = sorted((answer.wall_seconds, *pair) for pair, answer in found.items())
    print(
        f"{len(CASES)} cases, {len(found)} answers, {sum(a.seconds for a in found.values()):.1f} s; the slowest:",
        *times[-5:],
        sep="\n",
    )
    print("the largest:", *sorted((round(answer.mib), *pair) for pair, answer in found.items())[-3:], sep="\n")
    return found


@pytest.mark.parametrize(
    ("name", "door"), PAIRS, ids=[f"{name}, {door}".encode("ascii", "replace").decode() for name, door in PAIRS]
)
def test_a_file_of_a_stranger(answers: dict[tuple[str, str], oracles.Answer], name: str, door: str) -> None:
    answer = answers[name, door]
    assert not list(oracles.faults(CASES[name], answer)), answer


def test_all_numbers_are_tried() -> None:
    asked = {f"{letter}{number:02}" for letter, last in LAST.items() for number in range(1, last + 1)}
    tried = {name.partition(" ")[0] for name in CASES}
    assert asked - tried - ELSEWHERE.keys() == set()
    assert len(CASES) >= 200
    for file in ELSEWHERE.values():
        assert re.search(r"^def test_", (Path(__file__).parent / file).read_text(encoding="utf-8"), re.MULTILINE), file
