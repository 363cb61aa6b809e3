"""Runs that learn a word, alone and beside others: exact resuming, the files they leave, the pictures they paint."""

from __future__ import annotations

import signal

import pytest
import torch
from safetensors.torch import load_file

import tiny
from limner.cli import app
from limner.config import EmbeddingOnly
from limner.formats.header import read_header
from trainer import Moment, config, new_run, result, tensors_hash, train

WORD = {"token": "picture", "vectors": 2, "initial": "cat", "lr": 0.05}
PROMPT = {"prompts": ["Picture number 1 --s 2 --w 16 --h 16", "a cat --s 2 --w 16 --h 16"], "every_steps": 6}
ALONE = {"adapter": {"kind": "embedding"}, "embedding": WORD}
VARIANTS = {
    "alone": {**ALONE, "sample": PROMPT, "train": {"accumulation": 2, "ema": 0.9}},
    "pivotal": {"embedding": WORD, "adapter": {"text_encoder": True}, "memory": {"checkpointing": True}, "train": {"ema": 0.5}},
    "whole model": {"embedding": WORD, "adapter": {"kind": "none"}, "optimizer": {"lr": 1e-3}},
}


def make(model, pictures, /, **sections):
    chosen = config(model, pictures, **{k: v for k, v in sections.items() if v != {"kind": "embedding"}})
    if sections.get("adapter") == {"kind": "embedding"}:  # which has neither a rank nor the layers' learning rate
        optimizer = chosen.optimizer.model_copy(update={"lr": None})
        chosen = chosen.model_copy(update={"adapter": EmbeddingOnly(), "optimizer": optimizer})
    return new_run(chosen)


def done(run):
    assert train(run) == 0, run.tail()
    assert run.state().status == "done"
    return run


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_resuming_is_exact(tiny_model, pictures, variant):
    whole = done(make(tiny_model, pictures, **VARIANTS[variant]))
    run = make(tiny_model, pictures, **VARIANTS[variant])
    assert train(run, Moment("stop", "step", 4)) == 0, run.tail()
    assert train(run, Moment("kill", "step", 4)) == -signal.SIGKILL
    done(run)
    assert result(run) == result(whole)
    rates = [e["lr"] for e in run.history() if e["event"] == "step"]
    assert max(r["embedding"] for r in rates) == 0.05
    if variant != "alone":
        one, other = (r.checkpoints / "cat_embedding.safetensors" for r in (run, whole))
        assert tensors_hash(one) == tensors_hash(other)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_alone_it_leaves_one_small_file_and_pictures_that_know_the_word(tmp_path, pictures, family):
    model = tiny.build(tmp_path / "model", family=family)
    run = done(make(model, pictures, **ALONE, sample=PROMPT, output={"save_every_steps": 5, "keep_last": 1}))
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["cat-step00000010.safetensors", "cat.safetensors"]
    file = run.checkpoints / "cat.safetensors"
    shapes = {"emb_params": (2, 16)} if family == "sd1" else {"clip_l": (2, 16), "clip_g": (2, 24)}
    assert {k: tuple(v.shape) for k, v in load_file(file).items()} == shapes
    said = read_header(file).metadata
    assert said["modelspec.architecture"].endswith("/textual-inversion") and said["modelspec.trigger_phrase"] == "picture"
    assert not any(k.startswith("ss_") for k in said)
    first, last = (load_file(run.checkpoints / n) for n in ("cat-step00000010.safetensors", "cat.safetensors"))
    assert all((first[k] - last[k]).abs().max() > 1e-4 for k in shapes)
    with_word = [(run.samples / f"step-{s:08d}_00.png").read_bytes() for s in (6, 12)]
    without = [(run.samples / f"step-{s:08d}_01.png").read_bytes() for s in (6, 12)]
    assert with_word[0] != with_word[1] and without[0] == without[1]
    # `limner sample` paints what the run did at its end; its word is what the file says
    out = tmp_path / "again.png"
    words = ["sample", "Picture number 1", "--model", str(model), "--embedding", str(file), "--out", str(out)]
    assert (
        app([*words, "--steps", "2", "--width", "16", "--height", "16", "--device", "cpu"], result_action="return_value") == 0
    )
    assert out.read_bytes() == with_word[1]


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_beside_others_each_checkpoint_has_a_second_file(tiny_model, pictures, kind):
    adapter = {"kind": kind} if kind == "none" else {}
    given = {"adapter": adapter, "embedding": WORD, "output": {"save_every_steps": 3, "keep_last": 2}}
    run = done(make(tiny_model, pictures, **given))
    names = ["cat-step00000006", "cat-step00000009", "cat"]
    ending = "" if kind == "none" else ".safetensors"
    assert {p.name for p in run.checkpoints.iterdir()} == {n + e for n in names for e in (ending, "_embedding.safetensors")}
    events = [e for e in run.history() if e["event"] == "checkpoint"]
    assert [e["embedding"].endswith("_embedding.safetensors") for e in events] == [True] * 4
    assert load_file(events[-1]["embedding"])["emb_params"].shape == (2, 16)
    assert not any("emb" in k for k in load_file(run.checkpoints / "cat.safetensors")) if kind == "lora" else True


def test_what_surrounds_the_word_stays_and_the_loss_is_another(tiny_model, pictures):
    """The word alone learns: with a rate of next to nothing all losses are the base model's, with one they are not."""
    run, still = (done(make(tiny_model, pictures, **{**ALONE, "embedding": {**WORD, "lr": lr}})) for lr in (0.05, 1e-9))
    ours, base = ([e["loss"] for e in r.history() if e["event"] == "step"] for r in (run, still))
    assert ours[0] == base[0] and ours[-1] != base[-1]
    start = load_file(still.checkpoints / "cat.safetensors")["emb_params"]
    assert (start - load_file(run.checkpoints / "cat.safetensors")["emb_params"]).abs().max() > 0.01
    (remark,) = [e["message"] for e in run.history() if e["event"] == "warning" and "embedding.initial" in e["message"]]
    assert remark == "embedding.initial is 1 tokens for 2 vectors: they are repeated"


def test_an_average_is_what_the_file_holds(tiny_model, pictures):
    """The file of a run with an average holds the average, its training state the vectors themselves."""
    run = done(make(tiny_model, pictures, **ALONE, train={"ema": 0.9}))
    plain = done(make(tiny_model, pictures, **ALONE))
    averaged, last = (load_file(r.checkpoints / "cat.safetensors")["emb_params"] for r in (run, plain))
    state = load_file(sorted(run.states.iterdir())[-1] / "weights.safetensors")["embedding.text_encoder"]
    assert torch.equal(state, last) and (averaged - last).abs().max() > 1e-3
