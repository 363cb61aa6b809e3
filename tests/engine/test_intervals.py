"""When something is due, and what the journal writes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from limner import runs
from limner.config import Config
from limner.data.plan import Order
from limner.engine.due import is_due
from limner.engine.journal import Journal


def due_steps(num_pictures: int, micro_batches: int, total: int, **interval) -> list[int]:
    order = Order(tuple(range(num_pictures)), (0,) * num_pictures, 1, micro_batches, 0)
    job = SimpleNamespace(dataset=SimpleNamespace(order=order))
    return [s for s in range(1, total + 1) if is_due(job, s, interval.get("steps"), interval.get("epochs"))]  # type: ignore[arg-type]


def test_in_steps():
    assert due_steps(4, 1, 10, steps=3) == [3, 6, 9]
    assert due_steps(4, 1, 3, steps=1) == [1, 2, 3]
    assert due_steps(4, 1, 10) == []


def test_in_epochs():
    assert due_steps(4, 1, 12, epochs=1) == [4, 8, 12]
    assert due_steps(4, 1, 17, epochs=2) == [8, 16]
    assert due_steps(5, 2, 10, epochs=1) == [3, 5, 8, 10]  # an epoch may end within a step
    assert due_steps(2, 5, 4, epochs=1) == [1, 2, 3, 4]  # a step may hold several epochs
    assert due_steps(2, 5, 4, epochs=3) == [2, 3, 4]  # 2, 5, 7, 10 epochs are done
    assert due_steps(4, 1, 12, steps=5, epochs=2) == [5, 8, 10]


@pytest.fixture
def run():
    return runs.create(Config())


def events(run) -> list[dict]:
    return [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]


def test_losses_are_written_in_order_when_flushed(run):
    journal = Journal(run, is_main=True)
    journal.say(status="running", phase="training", steps=3)
    journal._flushed = float("inf")  # not yet time
    for step in (1, 2, 3):
        journal.step(step, torch.tensor(step / 4), None if step == 2 else torch.tensor(2.0), {"denoiser": 1e-4})
    assert not (run.path / "events.jsonl").exists()
    journal.flush()
    found = [{k: v for k, v in e.items() if k != "time"} for e in events(run) if e["event"] == "step"]
    assert found[0] == {"event": "step", "step": 1, "loss": 0.25, "lr": {"denoiser": 1e-4}, "grad_norm": 2.0}
    assert [e["step"] for e in found] == [1, 2, 3] and "grad_norm" not in found[1]
    assert run.state().step == 3


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_of_a_loss_that_is_no_number_there_is_no_event(run, loss):
    """What follows is for `engine.watch` to say."""
    journal = Journal(run, is_main=True)
    journal._flushed = float("inf")
    for step, value in ((1, 0.5), (2, loss), (3, 0.25)):
        journal.step(step, torch.tensor(value), None, {"denoiser": 1e-4})
    journal.flush()
    assert [(e["step"], e["loss"]) for e in events(run) if e["event"] == "step"] == [(1, 0.5), (3, 0.25)]
    assert run.state().step == 3


def test_other_processes_write_nothing(run):
    before = sorted(p.name for p in run.path.iterdir()), (run.path / "state.json").read_bytes()
    journal = Journal(run, is_main=False)
    journal.say(status="running", phase="training", step=1, steps=9)
    journal.step(1, torch.tensor(0.5), None, {"denoiser": 1e-4})
    journal.flush()
    journal.event("checkpoint", step=1)
    assert before == (sorted(p.name for p in run.path.iterdir()), (run.path / "state.json").read_bytes())
    assert (journal.state.status, journal.state.step) == ("running", 1)
