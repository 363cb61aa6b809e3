"""A running job takes changes at its next step; killed and resumed it ends as if it had not been."""

from __future__ import annotations

import math
import shutil
import signal
import time
from typing import Any

import pytest

import tiny
from limner import changes, jobs
from limner.engine.schedules import schedule_factor
from trainer import Moment, config, kinds, new_run, result, train

PROMPTS = {"prompts": ["picture number 1 --s 2 --w 16 --h 16"], "every_steps": 6}
FIRST: dict[str, Any] = {"optimizer.lr": 4e-3, "train.steps": 15, "output.state_every_steps": 4}
SECOND: dict[str, Any] = {
    "sample.prompts": ["a red thing --s 1 --w 16 --h 16", "b --s 1 --w 16 --h 16"],
    "sample.every_steps": 5,
}


def changes_of(run):
    return [(e["step"], e["options"]) for e in run.history() if e["event"] == "change"]


def warnings_of(run):
    return [e["message"] for e in run.history() if e["event"] == "warning"]


@pytest.mark.long
@pytest.mark.parametrize("variant", ["lora", "text encoder", "none"])
def test_a_resumed_run_replays_its_changes(tiny_model, pictures, variant):
    adapter = {"lora": {}, "text encoder": {"text_encoder": True}, "none": {"kind": "none"}}[variant]
    asked = config(tiny_model, pictures, sample=PROMPTS, adapter=adapter, train={"ema": 0.9})
    moments = Moment("change", "step", 4, FIRST), Moment("change", "step", 5, SECOND)
    whole = new_run(asked)
    assert train(whole, *moments) == 0, whole.tail()
    assert changes_of(whole) == [(4, FIRST), (5, SECOND)]
    assert whole.state().step == whole.state().steps == 15
    names = sorted(p.name for p in whole.samples.iterdir())
    assert names == [f"step-{s:08d}_{n:02d}.png" for s in (5, 10, 15) for n in (0, 1)]
    steps = {e["step"]: e["lr"]["denoiser"] for e in whole.history() if e["event"] == "step"}
    for step in range(1, 16):  # linear up to 2, then half a cosine to the end that holds at that step
        peak, total = (1e-2, 12) if step <= 4 else (4e-3, 15)
        done = step - 1
        factor = done / 2 if done < 2 else (1 + math.cos(math.pi * (done - 2) / (total - 2))) / 2
        assert steps[step] == pytest.approx(peak * factor, rel=1e-6)
    assert schedule_factor(asked.optimizer, 14, 15) < 0.05

    run = new_run(asked)
    assert train(run, *moments, Moment("kill", "step", 8)) == -signal.SIGKILL
    shutil.rmtree(run.states / "step-00000004")  # what is left is of step 3: both changes lie behind it
    assert train(run, Moment("kill", "step", 6)) == -signal.SIGKILL  # step 9 of all
    assert train(run) == 0, run.tail()
    assert changes_of(run) == changes_of(whole)
    assert result(run) == result(whole)


@pytest.mark.slow
def test_a_run_can_be_cut_short(tiny_model, pictures):
    run = new_run(config(tiny_model, pictures))
    short = {"train.steps": 4}
    assert train(run, Moment("change", "step", 4, short)) == 0, run.tail()
    assert (run.state().status, run.state().step, run.state().steps) == ("done", 4, 4)
    assert (run.checkpoints / "cat.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[optimizer\nlr = 1", "is not valid TOML"),
        ("lr = 1e-3", "lr: is not a section."),
        ("[optimizer]\nlr = -1", "optimizer.lr: -1 is not allowed"),
        ("[data]\nresolution = 64", "data.resolution: cannot be changed while a run goes on. What can be: optimizer: lr"),
        ("[train]\nsteps = 2", "train.steps: 2 is less than the 3 steps that are done."),
        ('[sample]\nprompts = ["a --q 1"]', "--q is not a flag"),
        ("", "nothing is to be changed"),
    ],
    ids=range(7),
)
def test_what_cannot_be_is_told_and_the_training_goes_on(tiny_model, pictures, text, said):
    """The file is consumed, the numbers are those of an undisturbed run."""
    run = new_run(config(tiny_model, pictures, train={"steps": 5}))
    assert train(run, Moment("change", "step", 3, text)) == 0, run.tail()
    (told,) = warnings_of(run)
    assert told.startswith("a change was refused: ") and said in told
    assert not (run.path / "control" / "change-1.toml").exists() and changes_of(run) == []
    assert run.state().status == "done" and run.state().step == 5


@pytest.mark.slow
def test_the_cadence_of_validation_can_be_changed(tiny_model, pictures, tmp_path):
    apart = tiny.pictures(tmp_path / "apart", ((40, 40),), seed=9)
    asked = config(tiny_model, pictures, train={"steps": 6}, validation={"path": str(apart), "every_steps": 5})
    run = new_run(asked)
    assert train(run, Moment("change", "step", 2, {"validation.every_steps": 4})) == 0, run.tail()
    assert [e["step"] for e in run.history() if e["event"] == "validation"] == [0, 4, 6]
    assert kinds(run)[-1] == "stop"


@pytest.mark.long
def test_all_processes_change_alike_and_measure_the_same(tiny_model, pictures, tmp_path):
    """Of two processes: the run ends where it was told to, and the validation loss before the first step is that of one."""
    apart = tiny.pictures(tmp_path / "apart", ((40, 40), (50, 30), (30, 50)), seed=9)
    sections = {"validation": {"path": str(apart), "every_steps": 100_000}, "sample": {"every_steps": 100_000}}
    one = new_run(config(tiny_model, pictures, train={"steps": 1}, **sections))
    assert train(one) == 0, one.tail()
    run = new_run(config(tiny_model, pictures, launch={"num_processes": 2}, train={"steps": 100_000}, **sections))
    process = jobs.start(run, "cpu")
    assert process is not None
    while process.poll() is None and run.state().step == 0:
        time.sleep(0.1)
    steps = run.state().step + 200
    prompts = ["a --s 1 --w 16 --h 16", "b --s 1 --w 16 --h 16"]  # each process paints one of them
    changes.request(run, {"train.steps": steps, "sample.prompts": prompts, "optimizer.lr": 1e-3})
    assert process.wait(300) == 0, run.tail(20_000)
    assert (run.state().status, run.state().step) == ("done", steps)
    assert sorted(p.name for p in run.samples.iterdir()) == [f"step-{steps:08d}_0{i}.png" for i in (0, 1)]
    ours, theirs = ([e["loss"] for e in r.history() if e["event"] == "validation"] for r in (run, one))
    assert len(ours) == 2 and ours[0] == theirs[0]
