"""After an alarm a run goes back to its last training state, and on; where it was, it decides what is left out, or ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limner import disk
from limner.engine.checkpoint import states_from
from limner.engine.compiled import uncompiled
from limner.engine.feed import places
from limner.engine.objective import answer_loss
from limner.engine.skips import Skip, num_shown, shown
from limner.engine.watch import Alarm
from limner.errors import UserError, printable, wrong
from limner.runs import Run

if TYPE_CHECKING:
    from limner.engine.training import Training

NEAR = 100
"""Steps that are the same place."""
_COMPARED = 4
"""Steps at most whose pictures are compared with those of the step at fault."""
_NAMED = 3
_LISTED = 100


def forget_states(run: Run, alarm: Alarm) -> None:
    """Delete the states that were saved while a loss exploded: numbers still, but worth nothing, and in the way of the next."""
    for path in states_from(run.states, alarm.step):
        disk.remove(path)


def leave_out(job: Training, alarm: Alarm) -> None:
    """Decide what is left out, now that a run that went back comes to the step of the alarm again: with the weights that it has
    there, so that it is the same whatever state it came from.

    Pictures whose loss is no number while others' is one, for good; else the step as a whole. In all processes alike. Raises
    UserError at the second step as a whole in the same place, for then it is not the pictures; or if nothing would be left.
    """
    pictures, end = single_out(job, alarm.step - 1), refusal(job, alarm)
    if not pictures and any(abs(alarm.step - s.step) <= NEAR for s in job.skips if not s.pictures):
        raise end
    skip = Skip(alarm.step, pictures, job.dataset.fingerprint() if pictures else "")
    numbers = pictures or step_pictures(job, alarm.step - 1)
    job.skips = [*job.skips, skip]
    rest = range(alarm.step, min(job.dataset.total_steps, alarm.step + job.dataset.order.steps(1)))
    if rest and not any(num_shown(job, step) for step in rest):
        raise end
    what = "left out at this step"
    if pictures:
        what = f"left out from now on{', and so each step that shows one' if job.runtime.is_sharded else ''}"
    said = f"{alarm.said}; the run went back to its last training state. Pictures {what}: {named(job, numbers)}"
    paths = [printable(job.dataset.pictures[i].path, 4000) for i in numbers[:_LISTED]]
    job.journal.event("skip", step=alarm.step, noticed=alarm.noticed, why=alarm.said, pictures=paths, skip=skip.told())
    job.journal.event("warning", message=said)
    if job.journal.is_main:
        disk.fsync(job.run.path / "events.jsonl")
        print(f"train.on_nan: {said}", flush=True)


def refusal(job: Training, alarm: Alarm) -> UserError:
    """The message for a run that ends."""
    shown_there = named(job, step_pictures(job, alarm.step - 1))
    finer = {"fp16": ', set train.precision = "bf16" or "fp32"', "bf16": ', set train.precision = "fp32"'}
    return wrong(
        "optimizer.lr",
        f"{alarm.said} (learning rate {job.learning_rate:g}; pictures: {shown_there}).",
        f"Lower the learning rate{finer.get(job.runtime.precision, '')}, or look at these pictures; the training state from "
        "before is kept.",
    )


def step_pictures(job: Training, step: int) -> tuple[int, ...]:
    """What a step (from 0) shows, each once."""
    return tuple(sorted({i for batch in shown(job, step) for i in batch if i is not None}))


def named(job: Training, numbers: Sequence[int]) -> str:
    """Some pictures by their files' names."""
    names = list(dict.fromkeys(printable(Path(job.dataset.pictures[i].path).name, 60) for i in numbers))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def single_out(job: Training, step: int) -> tuple[int, ...]:
    """The pictures of a step (from 0), and of those after it that they are compared with, whose loss is no number; () if that
    is so of all of them, or of none. With the draws of those steps."""
    bad, good = set[int](), set[int]()
    for number in range(step, step + _COMPARED):
        for found in job.runtime.shares(_losses(job, number)):
            for picture, is_number in found:
                (good if is_number else bad).add(picture)
        if good or not bad:
            break
    return tuple(sorted(bad - good)) if good else ()


@torch.no_grad()
def _losses(job: Training, step: int) -> list[tuple[int, bool]]:
    """(picture, whether its loss is a number) of this process's pictures of a step. Nothing of the adapter is dropped: no step
    has begun."""
    out = list[tuple[int, bool]]()
    for place in places(job, step):
        job.journal.sign("training")
        question = job.feed.take(place)
        with uncompiled(job.config.speed):
            losses = answer_loss(job, question)
        out += zip(place.indices, losses.isfinite().tolist(), strict=True)
    return out
