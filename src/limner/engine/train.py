"""The training loop, from a prepared run folder to a finished file. It reads as the algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from limner.engine import live, shards
from limner.engine.compiled import uncompiled
from limner.engine.due import has_samples, has_validation, is_checkpoint_due, is_sample_due, is_validation_due
from limner.engine.feed import places
from limner.engine.going_back import leave_out, refusal
from limner.engine.objective import Question, answer_loss, learn
from limner.engine.one_by_one import OneByOne
from limner.engine.optimizers import set_learning_rates
from limner.engine.previews import sample
from limner.engine.saving import save_state, save_weights
from limner.engine.schedules import schedule_factor
from limner.engine.skips import num_shown
from limner.engine.training import Training
from limner.engine.validation import validate
from limner.engine.watch import Alarm
from limner.errors import wrong

LEAST_SCALE = 1.0
"""Of a loss in fp16. Gradients that are too large make the scale smaller and their step is left out, which is as it should be;
not those that do not even fit unscaled. (DeepSpeed's min_loss_scale is 1, too.)"""
UNSCALED = (
    "gradients are too large for fp16 though the loss is no longer scaled up.",
    'Set train.precision = "bf16" or "fp32", or lower optimizer.lr; the training state from before is kept.',
)


def train(job: Training, first_step: int) -> bool:
    """Run the loop from `first_step` (steps already done). True if it came to the end, False if it was asked to stop. Raises
    Alarm if what it learns is no number any more, UserError if it shall not go back for that."""
    try:
        finished = loop(job, first_step)
        job.saver.collect(wait=True)
        return finished
    except Alarm as alarm:
        job.saver.collect(wait=True)
        job.journal.flush()
        if job.is_leaving:
            job.journal.event("warning", message=f"{alarm.said}: of the steps since the last training state nothing was saved")
            return False
        if job.config.train.on_nan == "stop":
            raise refusal(job, alarm) from None
        raise
    finally:
        job.feed.close()
        job.saver.close()


def loop(job: Training, first_step: int) -> bool:
    """As `train`; what is being saved may not be done."""
    config, runtime, journal, total, step = job.config, job.runtime, job.journal, job.dataset.total_steps, first_step
    job.done = step
    journal.say(status="running", phase="training", progress=(step, total), step=step, steps=total)
    if job.is_asked_to_stop() or not look(job, step, is_new=False):
        return False
    while step < total:
        if job.alarm is not None and step == job.alarm.step - 1:
            leave_out(job, job.alarm)
        if num_shown(job, step):
            measured = move_weights(job, step)
            job.meter.end()
            journal.step(step + 1, *measured)
        step += 1
        job.done = step
        job.saver.collect()

        requests = job.run.take_requests() if journal.is_main else []
        changes = live.take(job, step) if runtime.is_main else []
        stop, stop_now, paints, saves, changed = runtime.agree(
            [job.stop_requested() or "stop" in requests, "stop-now" in requests, "sample" in requests, "save" in requests,
             bool(changes)]
        )  # fmt: skip
        job.is_leaving = stop or stop_now
        if changed:
            with journal.waiting_for("loading"):  # new prompts are encoded with a model that may come from a slow disk
                live.apply(job, step, runtime.share(changes))
            config, total = job.config, job.dataset.total_steps
        # what was learnt is safe before anything is painted
        if step == total or saves or is_checkpoint_due(job, step):
            save_weights(job, step)
        stop = stop or stop_now
        is_kept = stop or step == total or step % config.output.state_every_steps == 0 or is_checkpoint_due(job, step)
        if is_kept:
            save_state(job, step)
        if stop or not look(job, step, is_asked=paints):
            if not is_kept:
                save_state(job, step)
            return step == total and not (job.prompts or job.validation)  # else something may be due still
    return True


def look(job: Training, step: int, *, is_new: bool = True, is_asked: bool = False) -> bool:
    """Validate and paint what is due behind a step, which after a resume (not `is_new`) may be there already; or paint because
    it `is_asked`. False if it was left in the middle, to stop: what is missing is made up for when the run is resumed."""
    share = job.runtime.share
    if is_validation_due(job, step) and (is_new or not share(has_validation(job, step))) and not validate(job, step):
        return False
    if is_asked or (is_sample_due(job, step) and (is_new or not share(has_samples(job, step)))):
        return sample(job, step)
    return True


def move_weights(job: Training, step: int) -> tuple[Tensor, Tensor | None, dict[str, float]]:
    """One step; returns its loss, the gradients' norm before it was limited, and the learning rates by group."""
    optimizer, scaler, limit = job.optimizer, job.scaler, job.config.train.clip_norm
    rates = set_learning_rates(optimizer, schedule_factor(job.config.optimizer, step, job.dataset.total_steps))
    if isinstance(optimizer, OneByOne):
        optimizer.now = step
    job.is_moving = job.config.optimizer.in_backward
    loss = accumulate_gradients(job, step)  # may move the weights already: optimizer.in_backward
    moves = not scaler.is_enabled() or any(p.grad is not None for p in job.params)
    if moves:
        scaler.unscale_(optimizer)  # pyright: ignore[reportArgumentType] (in fp16 it is a real one)
    norm = None if limit == "off" else shards.whole(torch.nn.utils.clip_grad_norm_(job.params, limit))
    job.is_moving = True
    total = None if scaler.is_enabled() else norm if norm is not None else gradients_norm(job)
    if moves:
        scaler.step(optimizer)  # pyright: ignore[reportArgumentType]
        scaler.update()
    if scaler.is_enabled() and scaler.get_scale() < LEAST_SCALE:
        raise wrong("train.precision", *UNSCALED)
    job.adapter.after_step()
    if job.graphs is None:
        optimizer.zero_grad(set_to_none=True)
    else:
        job.graphs.forget_gradients()
    if job.average is not None:
        job.average.update(step)
    job.is_moving = False
    job.watch.note(step + 1, loss, total)
    return loss, norm, rates


def gradients_norm(job: Training) -> Tensor | None:
    """The norm of gradients that are not limited, if any are left or were."""
    if job.config.optimizer.in_backward:
        assert isinstance(job.optimizer, OneByOne)
        return job.optimizer.take_norm()
    there = [p.grad for p in job.params if p.grad is not None]
    return shards.whole(torch.nn.utils.get_total_norm(there)) if there else None


def accumulate_gradients(job: Training, step: int) -> Tensor:
    """Forward and backward over the micro-batches of one step; returns the loss, a mean over the pictures it shows."""
    runtime = job.runtime
    count = num_shown(job, step)
    loss = torch.zeros((), device=runtime.device)
    job.meter.begin(count)
    for place in places(job, step):
        with job.meter.waiting():
            question = job.feed.take(place)
        job.adapter.begin(step, place.number)
        if job.config.speed.compile != "off" and not job.meter.knows(question.batch):
            count_aside(job, question)
        with job.meter.counting(question.batch):
            loss += learn(job, question, count) if job.graphs is None else job.graphs.learn(question, count)
        job.journal.sign("training")
    runtime.sum_gradients(job.params)
    return runtime.sum_scalar(loss)


def count_aside(job: Training, question: Question) -> None:
    """Let the meter count a micro-batch that is computed for nothing else: to count what is compiled it would have to be
    computed otherwise, and a resumed run would differ by rounding."""
    with uncompiled(job.config.speed), job.meter.counting(question.batch):
        loss = answer_loss(job, question).sum()
        if loss.requires_grad:
            torch.autograd.grad(loss, job.params, allow_unused=True)
