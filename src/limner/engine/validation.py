"""The loss on held-out pictures: always the same timesteps and noise, so that two measurements differ by the weights alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limner.data import held_out
from limner.data.dataset import assemble
from limner.data.scan import Picture
from limner.diffusion.draws import generator
from limner.diffusion.process import Discrete, Process
from limner.engine.average import evaluation_weights
from limner.engine.compiled import uncompiled
from limner.engine.objective import loss_at
from limner.engine.samples import Batch, Samples

if TYPE_CHECKING:
    from limner.engine.training import Training

NUM_TIMESTEPS = 4


def validation_samples(samples: Samples, held: Sequence[Picture]) -> Samples | None:
    """The held-out pictures as samples of their own, seen plainly; None if there are none."""
    if not held:
        return None
    config = samples.config
    objective = config.objective.model_copy(update={"preserve": "off"})
    plain = config.model_copy(update={"data": held_out.plain(config.data), "objective": objective})
    dataset = assemble(plain, samples.family.base, held_out.seen_plainly(held))
    return Samples(plain, dataset, samples.family, samples.runtime, samples.cache)


def timesteps(process: Process, least: int, most: int) -> list[float]:
    """The middles of four equal parts of the range that is trained, in thousandths of all noise as `objective` has them."""
    parts = [least + (most - least) * (k + 0.5) / NUM_TIMESTEPS for k in range(NUM_TIMESTEPS)]
    if isinstance(process, Discrete):
        return [int(t * process.num_timesteps / 1000) for t in parts]
    return parts


@torch.no_grad()
def measure(job: Training) -> float | None:
    """The mean loss over all held-out pictures and timesteps. Every process measures its share; all know the mean. None if it
    was asked to stop meanwhile.

    Pictures are the posterior's mean and not a draw; nothing of the adapter is dropped, since no step has begun.
    """
    runtime, samples, objective = job.runtime, job.validation, job.config.objective
    assert samples is not None
    chosen = timesteps(job.family.process, objective.least_timestep, objective.most_timestep)
    count = len(samples.dataset.pictures)
    losses = torch.zeros(count, NUM_TIMESTEPS, device=runtime.device)
    together = max(1, min(NUM_TIMESTEPS, job.config.train.batch_size))
    # all compute equally often, as they need one another; what is done twice counts once
    turns = count + -count % runtime.world
    for turn in range(runtime.rank, turns, runtime.world):
        if job.is_asked_to_stop():
            return None
        picture = min(turn, count - 1)
        for first in range(0, NUM_TIMESTEPS, together):
            places = range(first, min(first + together, NUM_TIMESTEPS))
            batch = samples.batch([picture] * len(places), 0, 0)
            found = _plain_loss(job, batch, picture, places, chosen)
            if turn == picture:
                losses[picture, first : places.stop] = found
        job.journal.say(phase="validating", progress=(picture + 1, count))
    # in float64 and in one order, so that the number of processes changes nothing
    return float(runtime.sum_scalar(losses).double().mean())


def _plain_loss(job: Training, batch: Batch, picture: int, places: range, chosen: Sequence[float]) -> Tensor:
    """(B,) losses of one picture at several timesteps."""
    x0, seed = batch.mean, job.config.train.seed
    noise = torch.stack([torch.randn(x0.shape[1:], generator=generator(seed, "validation", picture, k)) for k in places])
    t = torch.tensor([chosen[k] for k in places], device=x0.device)
    return loss_at(job, batch, noise.to(x0.device, x0.dtype), t)


def validate(job: Training, step: int) -> bool:
    """Measure the loss on the held-out pictures with the weights that a checkpoint of this step would hold. False if it was
    asked to stop before it could tell."""
    job.saver.collect(wait=True)
    job.watch.settle()
    job.journal.flush()
    job.journal.say(phase="validating", step=step)
    with evaluation_weights(job.optimizer, job.params, job.average), uncompiled(job.config.speed):
        loss = measure(job)
    if loss is not None and math.isfinite(loss):
        job.journal.event("validation", step=step, loss=loss)
    job.journal.say(phase="training", progress=(step, job.dataset.total_steps))
    return loss is not None
