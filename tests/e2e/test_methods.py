"""Two more ways to teach, beside the demo's: shorter than in docs/methods.md, judged by the same judge.

What each learns in 500 steps is in the table there; here it must be well on its way, and the base not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import methods

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forks")]


@pytest.fixture(scope="module")
def examiner() -> methods.Examiner:
    return methods.Examiner(num_scenes=30, num_seeds=1)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "steps", "what", "least"), [("embedding", 100, "pair", 0.25), ("full", 220, "recognised", 0.4)]
)
def test_it_learns(name: str, steps: int, what: str, least: float, tmp_path: Path, examiner: methods.Examiner):
    before = examiner.before()
    config, run, _ = methods.learn(methods.METHODS[name], tmp_path, steps)
    after = examiner.after(config, run)
    assert before[what] <= 0.05, before
    assert after[what] >= max(least, 5 * before[what]), after
    if methods.METHODS[name].data == "pair":  # a word changes nothing of what other words mean
        assert after["right"] == before["right"], (before, after)
