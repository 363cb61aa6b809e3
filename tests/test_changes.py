"""What a live change may hold, and what is refused before it is written."""

from __future__ import annotations

import os
import tomllib

import psutil
import pytest

from limner import changes, cli, runs
from limner.changes import CHANGEABLE, changed
from limner.cli.runs import runs_change
from limner.config import files
from limner.errors import UserError
from limner.runs import State


@pytest.fixture
def run():
    """A run that this very process trains, at step 10 of 100."""
    made = runs.create(files.build({}, {"train.steps": "100", "optimizer.lr": "0.001", "sample.prompts": '["a cat"]'}))
    me = psutil.Process()
    made.write_state(State("running", "training", step=10, steps=100, pid=os.getpid(), process_started=me.create_time()))
    return made


def test_changeable_options_are_options_and_fit_into_a_message() -> None:
    assert set(CHANGEABLE) <= {option.path for option in files.walk()}
    assert len(changes.what_can_be()) < 280


def test_only_the_named_sections_change() -> None:
    config = files.build({}, {"train.epochs": "3", "sample.prompt_file": "p.txt", "data.path": "x"})
    new = changed(config, {"train.steps": 50, "sample.prompts": ["a"], "optimizer.lr": 1e-5})
    assert (new.train.steps, new.train.epochs) == (50, None)
    assert (new.sample.prompts, new.sample.prompt_file) == (("a",), None)
    assert new.optimizer.lr == 1e-5 and new.data is config.data and new.model is config.model
    assert changed(new, {"train.epochs": 2}).train.steps is None
    assert changed(new, {"sample.every_steps": ""}) == new


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data.resolution": 64}, "data.resolution: cannot be changed while a run goes on."),
        ({"optimizer.rate": 1}, "there is no such option"),
        ({"optimizer.lr": "much"}, "optimizer.lr: 'much' is not allowed"),
        ({"train.steps": 5, "train.epochs": 1}, "both steps and epochs"),
        ({"train.steps": ""}, "cannot be left empty"),
        ({"optimizer.text_encoder_lr": 1e-5}, "has no effect unless"),
        ({"validation.every_steps": 5}, "holds no pictures out"),
        ({}, "nothing is to be changed"),
    ],
)
def test_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        changes.require_effect(changed(files.build({}, {"train.steps": "100"}), options), options)
    assert said in str(caught.value)


def test_a_request_is_a_file_that_is_taken_once_and_in_order(run) -> None:
    changes.request(run, changes.typed(run, {"optimizer.lr": "*0.5", "sample.every_steps": ""}))
    changes.request(run, changes.typed(run, {"sample.prompts": '["a dog", "x"]', "train.steps": "200"}))
    first, second = (tomllib.loads(text) for _, text in run.take_changes())
    assert first == {"optimizer": {"lr": 0.0005}, "sample": {"every_steps": ""}}
    assert second == {"sample": {"prompts": ["a dog", "x"]}, "train": {"steps": 200}}
    assert run.take_changes() == []


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"train.steps": "9"}, "9 is less than the 10 steps that are done"),
        ({"sample.prompts": "a --q 3"}, "--q is not a flag"),
        ({"optimizer.lr": "*x"}, "is no factor"),
        ({"optimizer.lr": "*0"}, "optimizer.lr: 0.0 is not allowed"),
    ],
)
def test_a_request_that_could_not_be_done_is_not_written(run, texts: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        changes.request(run, changes.typed(run, texts))
    assert said in str(caught.value) and run.take_changes() == []


def test_a_run_that_is_over_takes_no_changes(run) -> None:
    run.write_state(State("stopped", step=10, steps=100))
    with pytest.raises(UserError, match="is not running"):
        changes.request(run, {"train.steps": 200})


def test_recorded_changes_count_once_and_by_their_step(run) -> None:
    for step, name, options in ((5, "b", {"train.steps": 80}), (9, "c", {"train.steps": 70}), (5, "b", {"train.steps": 80})):
        run.event("change", step=step, id=name, options=options)
    run.event("change", step="x", id=3, options={})  # damaged
    run.event("change", step=4, id="a", options={"train.steps": 90})
    assert [c.id for c in changes.recorded(run)] == ["a", "b", "c"]
    assert [changes.config_at(run, step).train.steps for step in (3, 4, 5, 8, 9, None)] == [100, 90, 80, 80, 70, 70]
    # factors are of what holds now
    run.event("change", step=9, id="d", options={"optimizer.lr": 0.01})
    assert changes.typed(run, {"optimizer.lr": "*2"}) == {"optimizer.lr": 0.02}


def test_the_command(run, capsys, monkeypatch) -> None:
    assert runs_change(run.id, "optimizer.lr=5e-5", "train.steps=4000", 'sample.prompts=["a","b"]') == 0
    ((_, text),) = run.take_changes()
    assert tomllib.loads(text) == {
        "optimizer": {"lr": 5e-5}, "train": {"steps": 4000}, "sample": {"prompts": ["a", "b"]},
    }  # fmt: skip
    with pytest.raises(UserError, match=r"is not name=value"):
        runs_change(run.id, "train.steps")
    monkeypatch.setattr("sys.argv", ["limner", "runs", "change", run.id, "data.resolution=64"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "cannot be changed while a run goes on" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["adamw", "lion", "prodigy"])
def test_a_rate_changed_beside_another_optimiser(kind):
    """The optimiser's kind is no kind of section: choosing one forgets nothing else."""
    config = files.build({"optimizer": {"kind": kind, "lr": 1.0, "warmup_steps": 7}}, {})
    changed = changes.changed(config, {"optimizer.lr": 0.3})
    assert (changed.optimizer.kind, changed.optimizer.lr, changed.optimizer.warmup_steps) == (kind, 0.3, 7)
