"""Resuming is exact: however often and wherever a run is ended, it leaves what one uninterrupted run leaves."""

from __future__ import annotations

import shutil
import signal
import time

import pytest

from trainer import Moment, config, launch, new_run, result, states, train

PROMPT = {"prompts": ["picture number 1 --s 2 --w 16 --h 16"], "every_steps": 6}
VARIANTS = {
    "lora": {"sample": PROMPT, "output": {"save_every_steps": 5, "keep_last": 1}},
    "accumulation and ema": {"train": {"accumulation": 2, "ema": 0.9}, "sample": PROMPT},
    "text encoder, conv, dora, checkpointing": {
        "adapter": {"conv_rank": 2, "dora": True, "text_encoder": True, "alpha": 0.1, "rank_stabilized": True},
        "memory": {"checkpointing": True},
        "optimizer": {"text_encoder_lr": 3e-3},
    },
    "other kinds, rules, left out": {
        "adapter": {
            "kind": "loha",
            "rank": 2,
            "rank_dropout": 0.3,
            "module_dropout": 0.3,
            "max_norm": 0.5,
            "rules": ["denoiser.mid_block.*: lr_factor=2", "*to_v: off"],
        },
        "train": {"accumulation": 2},
    },
    "cuts, colours, resolutions, dropped captions": {
        "data": {"random_crop": True, "colour": True, "flip": True, "variants": 3, "caption_dropout": 0.3, "buckets": False,
                 "bucket_min_px": None, "bucket_max_px": None, "more_resolutions": ["40"]},
        "train": {"accumulation": 2},
    },
    "captions drawn, nothing cached": {
        "data": {"random_crop": True, "caption_separator": " ", "shuffle_tags": True, "tag_dropout": 0.3, "keep_tags": 1,
                 "tag_warmup_steps": 8, "caption_dropout_epochs": 2},
        "memory": {"cache_latents": False},
        "train": {"accumulation": 2},
    },
    "whole model": {"adapter": {"kind": "none", "text_encoder": True}, "optimizer": {"lr": 1e-3}, "train": {"ema": 0.5}},
}  # fmt: skip
ENDINGS = {
    "asked": [Moment("stop", "step", 4)],
    "terminated twice": [Moment("term", "step", 2), Moment("term", "step", 3)],
    "killed": [Moment("kill", "step", 5), Moment("kill", "file", 2), Moment("kill", "step", 4)],
    "killed while caching": [Moment("kill", "cache", 1), Moment("kill", "cache", 2)],
    "killed while renaming": [Moment("kill", "rename", 9), Moment("kill", "rename", 18)],
}
CASES = [pytest.param("lora", e, id=f"lora: {e}") for e in ENDINGS]
CASES += [pytest.param(v, "killed", id=f"{v}: killed", marks=pytest.mark.long) for v in VARIANTS if v != "lora"]


@pytest.fixture(scope="module")
def references():
    """Results of the uninterrupted runs, each made when first asked for."""
    return {}


def make(tiny_model, pictures, variant):
    return new_run(config(tiny_model, pictures, **VARIANTS[variant]))


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "ending"), CASES)
def test_resuming_is_exact(tiny_model, pictures, references, variant, ending):
    if variant not in references:
        whole = make(tiny_model, pictures, variant)
        assert train(whole) == 0, whole.tail()
        references[variant] = result(whole)
        assert [s[0] for s in references[variant]["steps"]] == list(range(1, 13))
        if ending == "killed while caching":
            shutil.rmtree(whole.path.parent.parent / "cache")
    run = make(tiny_model, pictures, variant)
    for moment in ENDINGS[ending]:
        code = train(run, moment)
        expected = {"kill": -signal.SIGKILL, "term": 128 + signal.SIGTERM, "stop": 0}[moment.what]
        assert code == expected, (moment, run.tail())
        state = run.state()
        assert state.status == ("failed" if moment.what == "kill" else "stopped"), state
    assert train(run) == 0, run.tail()
    assert run.state().status == "done" and run.state().step == 12
    assert result(run) == references[variant]


@pytest.mark.slow
def test_a_damaged_state_is_passed_over(tiny_model, pictures):
    whole = make(tiny_model, pictures, "lora")
    assert train(whole) == 0
    run = make(tiny_model, pictures, "lora")
    assert train(run, Moment("stop", "step", 8)) == 0
    older, newest = states(run)
    assert (older.name, newest.name) == ("step-00000006", "step-00000008")
    file = newest / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert train(run) == 0
    events = [e for e, _ in run.events()]
    assert next(e["step"] for e in events if e["event"] == "resume") == 6
    assert any("step-00000008: optimizer.safetensors is damaged" in e.get("message", "") for e in events)
    assert result(run) == result(whole)


@pytest.mark.long
@pytest.mark.slow
def test_without_any_state_the_run_starts_anew(tiny_model, pictures):
    whole = make(tiny_model, pictures, "lora")
    assert train(whole) == 0
    run = make(tiny_model, pictures, "lora")
    assert train(run, Moment("stop", "step", 7)) == 0
    for path in states(run):
        shutil.rmtree(path)
    assert train(run) == 0
    starts = [(e["event"], e["step"]) for e, _ in run.events() if e["event"] in ("start", "resume")]
    assert starts == [("start", 0), ("resume", 0)]
    assert result(run) == result(whole)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(tiny_model, pictures):
    run = make(tiny_model, pictures, "lora")
    assert train(run) == 0
    before, file = result(run), run.checkpoints / "cat.safetensors"
    changed = file.stat().st_mtime_ns
    assert train(run) == 0
    assert result(run) == before and run.state().status == "done"
    assert file.stat().st_mtime_ns == changed


@pytest.mark.parametrize(("what", "count"), [("stop", 1), ("term", 2)])
def test_a_stop_while_caching(tiny_model, pictures, what, count):
    """It ends before the first step, by a signal at once; and what was stored is not encoded again."""
    run = make(tiny_model, pictures, "lora")
    assert train(run, Moment(what, "cache", count)) == (143 if what == "term" else 0), run.tail()
    state = run.state()
    assert (state.status, state.step, states(run)) == ("stopped", 0, [])
    assert train(run) == 0
    assert run.state().status == "done"
    cached = [(e["latents"], e["captions"]) for e, _ in run.events() if e["event"] == "cached"]
    assert cached == [(4, 0)]  # the captions' only shard was written before the end


def test_stopping_at_once_is_quick(tiny_model, pictures):
    run = new_run(config(tiny_model, pictures, train={"steps": 5000}))
    process = launch(run)
    until = time.monotonic() + 60
    while run.state().phase != "training" and time.monotonic() < until:
        time.sleep(0.05)
    from limner import jobs

    state = jobs.stop(run, grace_seconds=20)
    process.join(20)
    assert state.status == "stopped" and 0 < state.step < 5000
    assert states(run)[-1].name == f"step-{state.step:08d}"
