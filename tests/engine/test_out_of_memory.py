"""Memory runs out in the middle of a run: it goes on in a smaller way, or ends in words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import forked
import tiny
import trainer
from limner.runs import Run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pictures(tmp_path_factory.mktemp("pictures"), ((40, 40),) * 4)


def _short_of_memory(folder: str, home: str, most: int, from_step: int) -> None:
    """A trainer whose device has no room for more than `most` pictures at once, once `from_step` steps are done."""
    os.environ["LIMNER_HOME"] = home
    forked.to_log(str(Path(folder) / "log.txt"))
    from limner.engine import __main__ as engine
    from limner.engine import fit, objective

    original = objective.answer_loss

    def limited(job: Any, question: Any) -> Any:
        if job.done >= from_step and len(question.batch.positions) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return original(job, question)

    objective.answer_loss = limited
    fit.free_mib = lambda device: 1 << 20  # the first choice is not what is tested here
    os._exit(engine.main(folder))


def _train(run: Run, most: int, from_step: int) -> int | None:
    words = str(run.path), os.environ["LIMNER_HOME"], most, from_step
    process = forked.CONTEXT.Process(target=_short_of_memory, args=words)
    process.start()
    process.join(150)
    return process.exitcode


@pytest.mark.long
def test_it_goes_on_with_smaller_pieces_and_learns_the_same(model: Path, pictures: Path) -> None:
    plain = trainer.new_run(trainer.config(model, pictures, train={"batch_size": 4}))
    assert trainer.train(plain) == 0
    run = trainer.new_run(trainer.config(model, pictures, train={"batch_size": 4}, memory={"fit": "auto"}))
    assert _train(run, 2, 6) == 0, run.tail()
    told = [e for e in run.history() if e["event"] == "fit"]
    assert [(e["step"], e["options"]) for e in told] == [(0, {}), (6, {"memory.micro_batch": 2})]
    assert any("memory ran out at step 7" in e["message"] for e in run.history() if e["event"] == "warning")
    # nothing was lost: it went on from the step before, and every step was made once
    assert [e["step"] for e, _ in run.events() if e["event"] == "resume"] == [6]
    assert [e["step"] for e, _ in run.events() if e["event"] == "step"] == list(range(1, 13))
    assert trainer.losses(run) == pytest.approx(trainer.losses(plain), rel=1e-4)
    assert run.plan()["fit"] == {"memory.micro_batch": 2}


@pytest.mark.long
def test_where_nothing_is_left_it_says_what_to_change(model: Path, pictures: Path) -> None:
    given = {"fit": "auto", "micro_batch": 2, "checkpointing": True}
    run = trainer.new_run(trainer.config(model, pictures, train={"batch_size": 4}, memory=given))
    assert _train(run, 1, 3) == 2
    assert "memory ran out" in run.state().error and "memory.quantize" in run.state().error
    assert [p.name for p in trainer.states(run)][-1] == "step-00000003"


@pytest.mark.long
def test_as_configured_means_that_the_run_ends(model: Path, pictures: Path) -> None:
    run = trainer.new_run(trainer.config(model, pictures, train={"batch_size": 4}))
    assert _train(run, 2, 4) == 2
    assert 'memory.fit = "auto"' in run.state().error
    assert [p.name for p in trainer.states(run)][-1] == "step-00000004"
    assert not [e for e in run.history() if e["event"] == "fit"]
