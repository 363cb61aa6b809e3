"""One, two or four processes take the same steps: the same pictures in the same order, and within rounding the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from limner.runs import Run
from trainer import config, losses, new_run, states, tensors_hash, train, train_together

SMALL = {"prompts": ["a cat --s 2 --w 16 --h 16", "a dog --s 3 --w 16 --h 16", "a cow --s 2 --w 16 --h 16"]}
KINDS = {
    "lora": {"adapter": {"dropout": 0.1}, "optimizer": {"lr": 1e-2}},
    "none": {"adapter": {"kind": "none"}, "optimizer": {"lr": 1e-3}},
    "embedding": {"adapter": {"kind": "embedding", "rank": None}, "embedding": {"token": "thing"}, "optimizer": {"lr": 1e-2}},
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
    given |= {"launch": {"num_processes": processes}, "data": {"flip": True, "shuffle_tags": True}, "validation": {"share": 0.3}}
    given["sample"] = SMALL
    given["output"] = {"save_every_steps": 2, "state_every_steps": 2}
    for name, values in sections.items():
        given[name] = {**given.get(name, {}), **values}
    if given["adapter"].get("rank", 0) is None:
        given["adapter"].pop("rank")
        chosen = config(model, pictures, **{n: v for n, v in given.items() if n != "adapter"})
        raw = chosen.model_dump(exclude_none=True)
        del raw
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_two_and_four_processes_learn_the_same(kind, tiny_model, wide_pictures):
    runs = {n: of(tiny_model, wide_pictures, kind, n) for n in (1, 2, 4)}
    assert train(runs[1]) == 0, runs[1].tail()
    before = weights(runs[1])
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
    assert before and len(told(runs[1], "sample")) == 3
    _ = tensors_hash, states
