"""NaN at fifty points: nothing that is no number is saved, all are noticed within ten steps, and resuming stays exact."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import poisoned
import tiny
import trainer
from poisoned import Fault
from trainer import Moment

pytestmark = pytest.mark.usefixtures("known_machine")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "ema, accumulation": {"train": {"ema": 0.9, "accumulation": 2}},
    "no clipping, text encoder": {"train": {"clip_norm": "off"}, "adapter": {"text_encoder": True}},
    "whole model": {"adapter": {"kind": "none"}, "optimizer": {"lr": 1e-3}},
    "dropout, max norm": {"adapter": {"rank_dropout": 0.2, "module_dropout": 0.2, "max_norm": 0.5}},
}
KINDS = ("loss", "gradient", "weights", "latents", "latents")
POINTS = [(method, what, number) for method in METHODS for what in KINDS for number in range(2)]
FIGURES = {"points": 0, "files": 0, "kills": 0, "latest": 0}


@pytest.fixture(scope="module", autouse=True)
def figures() -> Any:
    yield
    print(
        f"\nNaN injected at {FIGURES['points']} points: of {FIGURES['files']} files written 0 hold what is no number; "
        f"noticed at most {FIGURES['latest']} steps later; {FIGURES['kills']} runs were killed and resumed, to the same bits"
    )


@pytest.mark.parametrize(("method", "what", "number"), POINTS)
def test_a_point(model: Path, tmp_path: Path, method: str, what: str, number: int) -> None:
    rng = random.Random(f"{method} {what} {number} {len(FIGURES)}")
    given = {name: dict(values) for name, values in METHODS[method].items()}
    given.setdefault("train", {})["seed"] = rng.randrange(1000)
    given["output"] = {"state_every_steps": rng.choice((1, 2, 5)), "save_every_steps": rng.choice((3, 50))}
    chosen = trainer.config(model, tiny.pictures(tmp_path / "pictures", ((40, 40),) * 5), **given)
    fault = None
    if what == "latents":
        poisoned.spoil_latents(chosen, rng.randrange(5))
    else:
        fault = Fault(what, rng.randint(1, 12))
    run, ended = trainer.new_run(chosen), trainer.new_run(chosen)
    assert poisoned.train(run, fault) == 0, run.tail()
    poisoned.require_sound(run)
    found = poisoned.skips(run)
    assert found
    where = rng.choice(("step", "step", "rename"))
    code = poisoned.train(ended, fault, Moment("kill", where, rng.randint(2, 14 if where == "step" else 40)))
    assert code in (-9, 0), ended.tail()
    if code:
        assert poisoned.train(ended, fault) == 0, ended.tail()
    poisoned.require_sound(ended)
    assert trainer.result(ended) == trainer.result(run)
    assert [e["skip"] for e in poisoned.skips(ended)] == [e["skip"] for e in found]
    FIGURES["points"] += 1
    FIGURES["files"] += len(poisoned.written(run)) + len(poisoned.written(ended))
    FIGURES["kills"] += code != 0
    FIGURES["latest"] = max([FIGURES["latest"], *(e["noticed"] - e["step"] for e in found)])
