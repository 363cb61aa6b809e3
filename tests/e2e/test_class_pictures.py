"""Runs with class pictures, found and painted, and with a validation loss."""

from __future__ import annotations

import json
import signal

import pytest
from PIL import Image
from safetensors import safe_open

import tiny
from trainer import Moment, config, losses, new_run, result, train

SPARSE = {"steps": 2}


def chosen(model, pictures, folder, **sections):
    data = {"class_path": str(folder), "class_prompt": "a thing", "class_count": 3}
    return config(model, pictures, data=data, sample=SPARSE, **{"objective": {"prior_weight": 0.5}, **sections})


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.long
@pytest.mark.slow
def test_missing_class_pictures_are_painted_once_and_trained_on(tiny_model, pictures, tmp_path):
    folder = tmp_path / "things"
    folder.mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "own.png")
    run = new_run(chosen(tiny_model, pictures, folder))
    assert train(run) == 0, run.tail()
    assert names(folder) == ["limner-0001.png", "limner-0002.png", "own.png"]
    with Image.open(folder / "limner-0001.png") as one, Image.open(folder / "limner-0002.png") as two:
        assert one.size == two.size == (32, 32) and one.tobytes() != two.tobytes()
        said = json.loads(one.info["limner"])
    assert said == {"base": "model", "prompt": "a thing", "seed": said["seed"]}
    assert run.plan()["num_pictures"] == 4 and run.plan()["num_class_pictures"] == 3
    with safe_open(run.checkpoints / "cat.safetensors", "pt") as file:
        told = file.metadata()
    assert (told["ss_num_train_images"], told["ss_num_reg_images"], told["ss_prior_loss_weight"]) == ("4", "3", "0.5")
    assert json.loads(told["ss_reg_dataset_dirs"]) == {"things": {"n_repeats": 1, "img_count": 3}}
    assert json.loads(told["ss_dataset_dirs"]) == {"pictures": {"n_repeats": 1, "img_count": 4}}

    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    again = new_run(chosen(tiny_model, pictures, folder))
    assert train(again) == 0, again.tail()
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before, "they are used again"
    assert losses(again) == losses(run)
    plain = new_run(config(tiny_model, pictures))
    assert train(plain) == 0 and losses(plain) != losses(run)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["lora", "none"])
def test_painting_and_training_resume_exactly(tiny_model, pictures, tmp_path, kind):
    adapter = {"kind": "none"} if kind == "none" else {}
    whole = new_run(chosen(tiny_model, pictures, tmp_path / "whole" / "things", adapter=adapter))
    assert train(whole) == 0, whole.tail()
    folder = tmp_path / "parts" / "things"
    run = new_run(chosen(tiny_model, pictures, folder, adapter=adapter))
    assert train(run, Moment("stop", "picture", 2)) == 0, run.tail()
    assert run.state().status == "stopped" and len(names(folder)) == 2
    assert train(run, Moment("kill", "picture", 1)) == -signal.SIGKILL
    assert train(run, Moment("kill", "step", 5)) == -signal.SIGKILL
    assert train(run) == 0, run.tail()
    assert [p.read_bytes() for p in sorted(folder.glob("*.png"))] == [
        p.read_bytes() for p in sorted((tmp_path / "whole" / "things").glob("*.png"))
    ]
    assert result(run) == result(whole)


def validations(run):
    return [(e["step"], e["loss"]) for e in run.history() if e["event"] == "validation"]


@pytest.mark.long
def test_validating_changes_nothing_in_the_training(tiny_model, pictures, tmp_path):
    """To the bit, with the average of the weights, dropped captions and an odd cadence; resuming leaves the same curve."""
    apart = tiny.pictures(tmp_path / "apart", ((40, 40), (50, 30), (33, 47)), seed=9)
    sections = {"train": {"ema": 0.9}, "data": {"flip": True}, "adapter": {"text_encoder": True}}
    plain = new_run(config(tiny_model, pictures, **sections))
    assert train(plain) == 0, plain.tail()
    assert validations(plain) == []
    asked = config(tiny_model, pictures, validation={"path": str(apart), "every_steps": 5}, **sections)
    run = new_run(asked)
    assert train(run) == 0, run.tail()
    assert result(run) == result(plain)
    assert [step for step, _ in validations(run)] == [0, 5, 10, 12]
    assert len({loss for _, loss in validations(run)}) == 4
    resumed = new_run(asked)
    assert train(resumed, Moment("kill", "step", 6)) == -signal.SIGKILL
    assert train(resumed) == 0, resumed.tail()
    assert validations(resumed) == validations(run) and result(resumed) == result(plain)


@pytest.mark.slow
def test_a_share_is_held_out_and_measured_each_epoch(tiny_model, pictures):
    run = new_run(config(tiny_model, pictures, validation={"share": 0.3}, train={"steps": 7, "batch_size": 1}))
    assert train(run) == 0, run.tail()
    assert run.plan()["num_pictures"] == 3
    assert [step for step, _ in validations(run)] == [0, 3, 6, 7]
