"""One, two or four processes take the same steps: the same pictures in the same order, and within rounding the same numbers."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from limner.runs import Run
from trainer import Moment, config, losses, new_run, result, states, train, train_together

SMALL = {"prompts": ["a cat --s 2 --w 16 --h 16", "a dog --s 3 --w 16 --h 16", "a cow --s 2 --w 16 --h 16"]}
KINDS = {
    "lora": {"adapter": {"dropout": 0.1}, "optimizer": {"lr": 1e-2}},
    "none": {"adapter": {"kind": "none"}, "optimizer": {"lr": 1e-3}},
    "embedding": {"adapter": {"kind": "embedding"}, "embedding": {"token": "thing"}, "optimizer": {"lr": 1e-2}},
}


@pytest.fixture
def wide_pictures(pictures: Path) -> Path:
    """Pictures of several buckets."""
    for i, path in enumerate(sorted(pictures.glob("*.png"))):
        if i % 2:
            Image.open(path).resize((48, 24)).save(path)
    return pictures


def of(model: Path, pictures: Path, kind: str, processes: int, **sections) -> Run:
    """A run with four micro-batches in a step, however many processes share them out."""
    given = {name: dict(values) for name, values in KINDS[kind].items()}
    given["train"] = {"steps": 4, "batch_size": 1, "accumulation": 4 // processes, "ema": 0.9}
    given |= {"launch": {"num_processes": processes}, "validation": {"share": 0.3}}
    given["data"] = {"flip": True, "shuffle_tags": True}
    given["sample"] = SMALL
    given["output"] = {"save_every_steps": 2, "state_every_steps": 2}
    for name, values in sections.items():
        given[name] = {**given.get(name, {}), **values}
    return new_run(config(model, pictures, **given))


def weights(run: Run, name: str = "cat") -> dict[str, torch.Tensor]:
    finished = run.checkpoints / name
    files = sorted(finished.rglob("*.safetensors")) if finished.is_dir() else [finished.with_suffix(".safetensors")]
    return {f"{f.parent.name if finished.is_dir() else ''}/{k}": v for f in files for k, v in load_file(f).items()}


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


def told(run: Run, *names: str) -> list[dict]:
    """Events without their times and places."""
    return [{k: v for k, v in e.items() if k not in ("time", "path")} for e in run.history() if e["event"] in names]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_one_two_and_four_processes_learn_the_same(kind, tiny_model, wide_pictures):
    runs = {n: of(tiny_model, wide_pictures, kind, n) for n in (1, 2, 4)}
    assert train(runs[1]) == 0, runs[1].tail()
    for n in (2, 4):
        assert train_together(runs[n], n) == [0] * n, runs[n].tail()
        assert runs[n].state().status == "done"
        assert losses(runs[n]) == pytest.approx(losses(runs[1]), rel=1e-5)
        for name in ("cat-step00000002", "cat"):
            assert furthest(weights(runs[n], name), weights(runs[1], name)) < 2e-5, name
        assert [e["step"] for e in told(runs[n], "validation")] == [e["step"] for e in told(runs[1], "validation")]
        validations = [[e["loss"] for e in told(runs[i], "validation")] for i in (n, 1)]
        assert validations[0] == pytest.approx(validations[1], rel=1e-5)
        assert told(runs[n], "sample", "checkpoint", "state") == told(runs[1], "sample", "checkpoint", "state")
        assert sorted(p.name for p in runs[n].samples.iterdir()) == sorted(p.name for p in runs[1].samples.iterdir())
    assert len(told(runs[1], "sample")) == 3


@pytest.mark.long
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_that_is_shared_out_learns_the_same(checkpointing, tiny_model, wide_pictures):
    adapter = {"adapter": {"kind": "none", "rules": ["denoiser.conv_in.*: off"]}}
    memory = {"memory": {"checkpointing": checkpointing}}
    plain = of(tiny_model, wide_pictures, "none", 1, **adapter, **memory)
    assert train(plain) == 0, plain.tail()
    shared = of(tiny_model, wide_pictures, "none", 2, launch={"shard": "full"}, **adapter, **memory)
    assert train_together(shared, 2, {0: Moment("term", "step", 2)}) == [0, 0], shared.tail()
    assert shared.state().status == "stopped"
    copy = another(shared)
    assert train_together(shared, 2) == [0, 0], shared.tail()
    assert train(copy) == 0, copy.tail()  # gone on with alone, nothing shared out
    for run in (shared, copy):
        assert losses(run) == pytest.approx(losses(plain), rel=1e-5)
        for name in ("cat-step00000002", "cat"):
            assert furthest(weights(run, name), weights(plain, name)) < 2e-5, name
        for file in ("weights", "average", "optimizer"):
            ours, theirs = (load_file(states(r)[-1] / f"{file}.safetensors") for r in (run, plain))
            assert furthest(ours, theirs) < 2e-5, file
        validations = [[e["loss"] for e in told(r, "validation")] for r in (run, plain)]
        assert validations[0] == pytest.approx(validations[1], rel=1e-5)
        assert told(run, "sample", "checkpoint") == told(plain, "sample", "checkpoint")
        norms = [[e["grad_norm"] for e in told(r, "step")] for r in (run, plain)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_processes(tiny_model, wide_pictures):
    whole = of(tiny_model, wide_pictures, "lora", 2)
    assert train_together(whole, 2) == [0, 0], whole.tail()
    for before, after in ((2, 1), (1, 2), (2, 2)):
        run = of(tiny_model, wide_pictures, "lora", before)
        first = {0: Moment("term", "step", 3)}
        if before == 2:
            assert train_together(run, 2, first) == [0, 0], run.tail()  # their launcher says how they were stopped
        else:
            assert train(run, first[0]) == 128 + signal.SIGTERM, run.tail()
        assert run.state().status == "stopped" and run.state().step == 3
        assert (train_together(run, 2) if after == 2 else [train(run)] * 2) == [0, 0], run.tail()
        assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
        assert furthest(weights(run), weights(whole)) < 2e-5
        said = [e["message"] for e in told(run, "warning")]
        assert [m for m in said if "instead of" in m] == (
            [f"trained by {after} instead of {before} processes; each step is the same"] if before != after else []
        )
        if before == after:
            assert result(run) == result(whole), "to the bit with the same number"


@pytest.mark.slow
def test_steps_that_cannot_be_shared_out_are_refused(tiny_model, pictures):
    run = new_run(config(tiny_model, pictures, train={"steps": 2, "accumulation": 3}))
    assert train_together(run, 2) == [2, 2]
    assert "3 micro-batches, which 2 processes cannot share out evenly. Use one of 1, 3." in run.state().error


@pytest.mark.long
@pytest.mark.slow
def test_a_stop_while_caching_reaches_all(tiny_model, wide_pictures):
    run = of(tiny_model, wide_pictures, "lora", 2)
    assert train_together(run, 2, {1: Moment("term", "cache", 1)}) == [0, 0], run.tail()
    assert (run.state().status, run.state().step) == ("stopped", 0)
    assert not states(run)
    assert train_together(run, 2) == [0, 0], run.tail()
    assert run.state().status == "done" and "[process 2 of 2]" not in (run.path / "events.jsonl").read_text()


@pytest.mark.long
@pytest.mark.slow
def test_class_pictures_are_painted_by_all(tiny_model, pictures, tmp_path):
    painted = []
    for processes in (1, 2):
        folder = tmp_path / f"classes of {processes}"
        folder.mkdir()
        data = {"class_path": str(folder), "class_prompt": "a thing", "class_count": 3}
        run = of(tiny_model, pictures, "lora", processes, data=data, train={"steps": 1})
        assert (train_together(run, 2) if processes == 2 else [train(run)]) == [0] * processes, run.tail()
        painted.append({p.name: p.read_bytes() for p in folder.glob("*.png")})
    assert len(painted[0]) == 3 and painted[0] == painted[1]


def another(run: Run) -> Run:
    """A copy of a run's folder."""
    copy = Run(run.path.with_name(f"{run.id}-copy"))
    shutil.copytree(run.path, copy.path)
    return copy
