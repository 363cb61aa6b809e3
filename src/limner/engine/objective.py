"""What a step of training makes small: the loss of each picture of a micro-batch, from the draws to the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from limner.diffusion.loss import huber_threshold, per_sample_loss
from limner.diffusion.noise import training_noise
from limner.diffusion.weighting import timestep_weight
from limner.engine.attention import attending_by
from limner.engine.compiled import uncompiled
from limner.engine.samples import Batch, draw_latents
from limner.models.family import Conditioning

if TYPE_CHECKING:
    from limner.engine.training import Training


class Question(NamedTuple):
    """What the model is asked about a micro-batch, and the answer that is wanted, all on the device."""

    batch: Batch
    noisy: Tensor
    t: Tensor
    """(B,) timesteps."""
    target: Tensor


def batch_loss(job: Training, batch: Batch, step: int) -> Tensor:
    """The weighted loss of each picture, shape (B,)."""
    return answer_loss(job, ask(job, batch, step))


def ask(job: Training, batch: Batch, step: int) -> Question:
    """Draw all that chance decides about a micro-batch of a step. Needs nothing of the model."""
    process, section, seed = job.family.process, job.config.objective, job.config.train.seed
    x0 = draw_latents(batch, seed, step)
    noise, shown_noise = training_noise(x0, section, seed, step, batch.positions)
    t = job.timesteps.draw(x0, seed, step, batch.positions)
    return Question(batch, process.add_noise(x0, shown_noise, t), t, process.target(x0, noise, t))


def answer_loss(job: Training, question: Question) -> Tensor:
    """How wrong the model's answer is about each picture, weighed by all that weighs, shape (B,). Draws nothing."""
    section, (batch, noisy, t, target) = job.config.objective, question
    loss = prediction_loss(job, batch, noisy, target, t)
    if batch.weight is not None:
        loss = loss * batch.weight
    if section.preserve != "off" and batch.class_cond is not None:
        loss = loss + section.preserve * preservation_loss(job, noisy, t, batch.class_cond)
    return loss


def prediction_loss(job: Training, batch: Batch, noisy: Tensor, target: Tensor, t: Tensor) -> Tensor:
    """How wrong the model is about each picture, weighed by its timestep, shape (B,)."""
    process, section = job.family.process, job.config.objective
    with job.runtime.autocast():
        cond = batch.cond if batch.cond is not None else job.family.encode_captions(batch.captions) | batch.told
        pred = job.family.predict(noisy, t, cond)
    threshold = huber_threshold(process, t, section.huber_threshold, section.huber_schedule)
    loss = per_sample_loss(pred, target, section.loss, threshold, batch.mask)
    return loss * timestep_weight(process, t, section.weighting, section.snr_gamma, section.v_share)


def loss_at(job: Training, batch: Batch, noise: Tensor, t: Tensor) -> Tensor:
    """The loss of each picture with this noise (B, C, H, W) at these timesteps (B,), as the objective measures it; shape (B,).

    Draws nothing: the latents are the posteriors' means. What only teaching needs is left out: noise beside the target's,
    the pictures' weights, preservation.
    """
    process, x0 = job.family.process, batch.mean
    return prediction_loss(job, batch, process.add_noise(x0, noise, t), process.target(x0, noise, t), t)


def preservation_loss(job: Training, noisy: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """How far the adapted model has moved from the base model's prediction under class words, shape (B,).

    Differential output preservation: no class pictures are needed, the base model itself is the teacher.
    """
    with torch.no_grad(), job.adapter.suspended(), uncompiled(job.config.speed), job.runtime.autocast():
        wanted = job.family.predict(noisy, t, cond)
    with job.runtime.autocast():
        return per_sample_loss(job.family.predict(noisy, t, cond), wanted)


def learn(job: Training, question: Question, count: int | Tensor) -> Tensor:
    """Forward and backward over a micro-batch; returns its share of the loss, a mean over `count` pictures."""
    with attending_by(job.config.speed.attention):
        part = answer_loss(job, question).sum() / count
        if part.requires_grad:  # not if every layer was left out
            job.scaler.scale(part).backward()
    return part.detach()
