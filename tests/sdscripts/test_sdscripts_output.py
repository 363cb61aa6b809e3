"""What sd-scripts says is understood, however it comes in."""

from __future__ import annotations

import math
import random

import pytest

from limner.sdscripts.output import Lines, Told

SESSION = (
    "2026-02-16 08:07:29 INFO     caching latents...                    train_util.py:1170\n"
    "\r  0%|          | 0/4 [00:00<?, ?it/s]\r 50%|█████     | 2/4 [00:01<00:01,  1.99it/s]"
    "\r100%|██████████| 4/4 [00:02<00:00,  1.98it/s]\n"
    "running training / 学習開始\n  num batches per epoch / 1epochのバッチ数: 40\n"
    "\rsteps:   0%|          | 0/80 [00:00<?, ?it/s]\nepoch 1/2\n\n"
    "\rsteps:   1%|▏         | 1/80 [00:01<01:19,  1.00s/it]"
    "\rsteps:   1%|▏         | 1/80 [00:01<01:19,  1.00s/it, Average key norm=0.0117, Keys Scaled=0, avr_loss=0.112]"
    "\rsteps:   3%|▎         | 2/80 [00:02<01:18,  1.00s/it, Average key norm=0.0117, Keys Scaled=0, avr_loss=0.112]"
    "\rsteps:   3%|▎         | 2/80 [00:02<01:18,  1.00s/it, avr_loss=0.0987]"
)


def told_of(text: str | bytes, sizes: random.Random | None = None) -> Told:
    lines, told = Lines(), Told()
    raw = text if isinstance(text, bytes) else text.encode()
    while raw:
        size = sizes.randint(1, 40) if sizes else len(raw)
        for line, _ in lines.feed(raw[:size]):
            told.take(line)
        told.take(lines.unfinished, is_whole=False)
        raw = raw[size:]
    for line, _ in lines.feed(b"", last=True):
        told.take(line)
    return told


@pytest.mark.parametrize("seed", range(6))
def test_bars_are_read_whatever_pieces_they_come_in(seed: int) -> None:
    told = told_of(SESSION, random.Random(seed) if seed else None)
    assert (told.phase, told.progress, told.step, told.total, told.batches, told.epoch) == ("training", (2, 80), 2, 80, 40, 1)
    assert told.taken_losses(all_of_them=True) == [(1, 0.112, 1), (2, 0.0987, 1)]


def test_of_the_newest_step_a_better_loss_may_come() -> None:
    told = told_of(SESSION)
    assert told.taken_losses() == [(1, 0.112, 1)]
    told.take("steps:   3%|▎  | 2/80 [00:02<01:18,  1.00s/it, avr_loss=0.5]")
    told.take("steps:   4%|▎  | 3/80 [00:03<01:18,  1.00s/it, avr_loss=0.4]")
    assert told.taken_losses() == [(2, 0.5, 1)]


def test_phases_follow_one_another_and_a_bar_that_stands_still_is_no_progress() -> None:
    told = told_of(SESSION)
    bar = "steps:   3%|▎         | 2/80 [00:02<01:18,  1.00s/it, avr_loss=0.0987]"
    told.take(bar + "generating sample images at step / サンプル画像生成 ステップ: 2")
    assert told.phase == "sampling"
    told.take(" 40%|████      | 8/20 [00:08<00:12,  1.00s/it]")
    told.take(bar.replace("00:02", "00:12"))  # tqdm's own look after ten seconds
    assert (told.phase, told.progress, told.step) == ("sampling", (8, 20), 2)
    told.take("saving checkpoint: /x/cat-step00000002.safetensors")
    assert told.phase == "saving"
    told.take("steps:   3%|▎         | 2/80 [00:02<01:18,  1.00s/it, avr_loss=0.09]")
    assert told.phase == "training"
    told.take("validation steps: 100%|██| 8/8 [00:04<00:00,  2.00it/s, val_avg_loss=0.21, timestep=800]")
    assert (told.phase, told.progress, told.held_out) == ("validating", (8, 8), 0.21)


def test_a_cut_or_hostile_bar_is_none() -> None:
    told = Told()
    for text in (
        "steps:   1%|▏         | 1/80 [00:01<01:19",
        "steps:   1%|▏  | " + "9" * 400 + "/80 [0]",
        "| 1/2 [",
        "%|" * 10_000,
        "steps: 1%|" + "|" * 10_000,
        "Traceback" * 10_000,
    ):
        told.take(text)
    assert (told.phase, told.step, told.error) == ("loading", 0, "")


def test_a_loss_that_is_no_number() -> None:
    told = told_of("\rsteps:   1%|▏| 1/80 [00:01<01:19,  1.00s/it, avr_loss=nan]\r")
    ((step, loss, _),) = told.taken_losses(all_of_them=True)
    assert step == 1 and math.isnan(loss)


FAILURE = """steps:  10%|█         | 7/80 [00:02<01:18, avr_loss=0.1]Traceback (most recent call last):
  File "/x/train_network.py", line 9, in <module>
    trainer.train(args)
RuntimeError: Error(s) in loading state_dict for UNet:
\tsize mismatch for conv_in
Traceback (most recent call last):
  File "/x/accelerate/commands/launch.py", line 1, in simple_launcher
    raise subprocess.CalledProcessError(returncode=process.returncode, cmd=cmd)
subprocess.CalledProcessError: Command '['python', 'train_network.py']' returned non-zero exit status 1.
"""


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (FAILURE, "RuntimeError: Error(s) in loading state_dict for UNet: size mismatch for conv_in"),
        ("Traceback (most recent call last):\n  x\ntorch.OutOfMemoryError: CUDA out of memory. Tried\n",
         "torch.OutOfMemoryError: CUDA out of memory. Tried"),
        ("Traceback (most recent call last):\n  x\nAssertionError\n", "AssertionError"),
        ("usage: train_network.py [-h]\ntrain_network.py: error: unrecognized arguments: --foo\n",
         "unrecognized arguments: --foo"),
        ("Traceback (most recent call last):\n  x\nsubprocess.CalledProcessError: Command died\n", ""),
        ("ValueError: said without a traceback\n", ""),
        ("Traceback (most recent call last):\n  x\nKeyError: '\x1b[31m\x07'\n", "KeyError: '\\u001b[31m\\u0007'"),
    ],
)  # fmt: skip
def test_the_reason_is_the_scripts_own_last_exception(text: str, error: str) -> None:
    assert told_of(text).error == error
    assert told_of(text.replace("\n", "\r\n")).error == error


def test_lines_stay_or_pass() -> None:
    lines = Lines()
    assert list(lines.feed(b"a\nb\r")) == [("a", True)]
    assert list(lines.feed(b"\nc\rd")) == [("b", True), ("c", False)]
    assert lines.unfinished == "d"
    assert list(lines.feed("ä".encode()[:1])) == [] and list(lines.feed("ä".encode()[1:] + b"\xff\n")) == [("dä\ufffd", True)]
    assert [len(t) for t, _ in lines.feed(b"x" * (1 << 17))] == [1 << 16]
