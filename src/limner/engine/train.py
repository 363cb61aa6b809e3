"""The training loop, from a prepared run folder to a finished file. It reads as the algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from limner.engine import live, shards
from limner.engine.compiled import uncompiled
from limner.engine.due import has_samples, has_validation, is_checkpoint_due, is_sample_due, is_validation_due
from limner.engine.feed import places
from limner.engine.objective import Question, answer_loss, learn
from limner.engine.one_by_one import OneByOne
from limner.engine.optimizers import set_learning_rates
from limner.engine.previews import sample
from limner.engine.saving import save_state, save_weights
from limner.engine.schedules import schedule_factor
from limner.engine.training import Training
from limner.engine.validation import validate


def train(job: Training, first_step: int) -> bool:
    """Run the loop from `first_step` (steps already done). True if it came to the end, False if it was asked to stop."""
    try:
        finished = loop(job, first_step)
        job.saver.collect(wait=True)
        return finished
    finally:
        job.feed.close()
        job.saver.close()


def loop(job: Training, first_step: int) -> bool:
    """As `train`; what is being saved may not be done."""
    config, runtime, journal, total, step = job.config, job.runtime, job.journal, job.dataset.total_steps, first_step
    job.done = step
    journal.say(status="running", phase="training", progress=(step, total), step=step, steps=total)
    if is_validation_due(job, step) and not runtime.share(has_validation(job, step)):
        validate(job, step)
    if is_sample_due(job, step) and not runtime.share(has_samples(job, step)):
        sample(job, step)
    while step < total:
        measured = move_weights(job, step)
        job.meter.end()
        step += 1
        job.done = step
        journal.step(step, *measured)
        job.saver.collect()

        requests = job.run.take_requests() if journal.is_main else []
        changes = live.take(job, step) if runtime.is_main else []
        stop, stop_now, paints, saves, changed = runtime.agree(
            [job.stop_requested() or "stop" in requests, "stop-now" in requests, "sample" in requests, "save" in requests,
             bool(changes)]
        )  # fmt: skip
        if changed:
            with journal.waiting_for("loading"):  # new prompts are encoded with a model that may come from a slow disk
                live.apply(job, step, runtime.share(changes))
            config, total = job.config, job.dataset.total_steps
        # what was learnt is safe before anything is painted
        if step == total or saves or is_checkpoint_due(job, step):
            save_weights(job, step)
        if stop or stop_now or step == total or step % config.output.state_every_steps == 0 or is_checkpoint_due(job, step):
            save_state(job, step)
        if not stop_now and is_validation_due(job, step):
            validate(job, step)
        if paints or (not stop_now and is_sample_due(job, step)):
            sample(job, step)
        if stop or stop_now:
            return step == total
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
    if moves:
        scaler.step(optimizer)  # pyright: ignore[reportArgumentType]
        scaler.update()
    job.adapter.after_step()
    if job.graphs is None:
        optimizer.zero_grad(set_to_none=True)
    else:
        job.graphs.forget_gradients()
    if job.average is not None:
        job.average.update(step)
    job.is_moving = False
    return loss, norm, rates


def accumulate_gradients(job: Training, step: int) -> Tensor:
    """Forward and backward over the micro-batches of one step; returns the loss, a mean over all pictures of the step."""
    runtime = job.runtime
    count = sum(map(len, job.dataset.order.step(step)))
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
