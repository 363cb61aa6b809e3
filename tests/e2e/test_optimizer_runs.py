"""Real runs with optimisers that keep more than moments, killed and resumed: what is left is what one run leaves."""

from __future__ import annotations

import signal

import pytest

from trainer import Moment, config, new_run, result, train

VARIANTS = {
    "prodigy": {"optimizer": {"kind": "prodigy", "lr": 1.0, "arguments": ["d0=1e-4"]}, "adapter": {"text_encoder": True}},
    "schedule_free": {
        "optimizer": {"kind": "schedule_free", "schedule": "constant"},
        "sample": {"prompts": ["picture number 1 --s 2 --w 16 --h 16"], "every_steps": 4},
        "output": {"save_every_steps": 5},
    },
    "muon": {
        "optimizer": {"kind": "muon", "schedule": "piecewise", "pieces": ["4:1", "9:0.3", "0.1"], "warmup_steps": 0},
        "adapter": {"conv_rank": 2},
        "train": {"accumulation": 2},
    },
    "whole model in bf16, adafactor in the backward pass, average on the CPU": {
        "adapter": {"kind": "none", "weights": "bf16"},
        "optimizer": {"kind": "adafactor", "in_backward": True, "schedule": "warmup_stable_decay"},
        "train": {"precision": "bf16", "clip_norm": "off", "ema": 0.5, "ema_device": "cpu"},
    },
    "a class by its path": {"optimizer": {"kind": "other", "class_path": "pytorch_optimizer.AdEMAMix"}},
}


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_resuming_is_exact(tiny_model, pictures, variant):
    chosen = config(tiny_model, pictures, **VARIANTS[variant])
    whole, broken = new_run(chosen), new_run(chosen)
    assert train(whole) == 0, whole.tail()
    assert train(broken, Moment("kill", "step", 8)) == -signal.SIGKILL  # its newest state is that of step 6
    assert train(broken) == 0, broken.tail()
    expected, found = result(whole), result(broken)
    assert len(expected["steps"]) == 12 and found == expected
    rates = [lr["denoiser"] for _, _, lr, _ in expected["steps"]]
    if variant == "prodigy":
        assert rates[0] == 0 and 0 < rates[1] < 1e-3  # what was found times what the schedule says, not the nominal 1
    elif variant == "muon":
        assert rates == pytest.approx([1e-2] * 4 + [3e-3] * 5 + [1e-3] * 3)


@pytest.mark.long
@pytest.mark.slow
def test_in_the_backward_pass_a_run_comes_to_the_same(tiny_model, pictures):
    """With layers computed again and the text encoder trained, too: no weight moves before it has been used."""
    runs = []
    for in_backward in (False, True):
        chosen = config(
            tiny_model,
            pictures,
            adapter={"kind": "none", "text_encoder": True},
            memory={"checkpointing": True},
            optimizer={"lr": 1e-3, "in_backward": in_backward},
            train={"clip_norm": "off", "steps": 6},
        )
        runs.append(new_run(chosen))
        assert train(runs[-1]) == 0, runs[-1].tail()
    plain, early = (result(run) for run in runs)
    assert (plain["weights"], plain["steps"]) == (early["weights"], early["steps"])
