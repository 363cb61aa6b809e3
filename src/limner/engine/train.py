"""The training loop, from a prepared run folder to a finished file. It reads as the algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner import disk
from limner.adapters.adapter import Adapter
from limner.config import Config
from limner.config.prompts import Prompt
from limner.data.dataset import Dataset
from limner.diffusion.draws import noise_like
from limner.diffusion.loss import per_sample_loss, snr_weight
from limner.engine import checkpoint, paint
from limner.engine.journal import Journal, diverged
from limner.engine.optim import Average, make_optimizer, schedule_factor, set_learning_rates
from limner.engine.runtime import Runtime
from limner.engine.samples import Batch, Samples, draw_latents
from limner.models.family import Conditioning, Family
from limner.runs import Run


@dataclass
class Training:
    """Everything a run holds in memory."""

    config: Config
    run: Run
    runtime: Runtime
    journal: Journal
    family: Family
    adapter: Adapter
    dataset: Dataset
    samples: Samples
    learning_rate: float
    facts: dict[str, Any]
    """What the run found out, for the files' metadata."""
    prompts: list[Prompt]
    encoded_prompts: list[tuple[Conditioning, Conditioning]]
    stop_requested: Callable[[], bool]
    written: list[str] = field(default_factory=list)
    """Checkpoints written on the way, oldest first."""
    optimizer: torch.optim.Optimizer = field(init=False)
    average: Average | None = field(init=False, default=None)
    params: list[torch.nn.Parameter] = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    """Keeps small gradients from vanishing in float16; does nothing in other precisions."""

    def __post_init__(self) -> None:
        groups = self.adapter.parameter_groups(self.config.optimizer, self.learning_rate)
        self.params = [p for g in groups for p in g["params"]]
        self.optimizer = make_optimizer(self.config.optimizer, groups, self.runtime.device)
        self.scaler = torch.amp.GradScaler(self.runtime.device.type, enabled=self.runtime.precision == "fp16")
        if self.config.train.ema != "off":
            self.average = Average(self.params, self.config.train.ema)

    def circumstances(self) -> dict[str, Any]:
        """What must be the same when the run is resumed, or its numbers would be others."""
        out = {
            "device": self.runtime.device.type,
            "precision": self.runtime.precision,
            "number of steps": self.dataset.total_steps,
            "VAE or text encoders": self.samples.fingerprint(),
        }
        # only the main process has hashed them
        return out | ({"base model": self.facts["model_hash"], "merged files": self.facts["merged"]} if self.facts else {})


def train(job: Training, first_step: int) -> bool:
    """Run the loop from `first_step` (steps already done). True if it came to the end, False if it was asked to stop."""
    config, runtime, journal, total = job.config, job.runtime, job.journal, job.dataset.total_steps
    step = first_step
    journal.say(status="running", phase="training", progress=(step, total), step=step, steps=total)
    if is_sample_due(job, step) and not has_samples(job, step):
        sample(job, step)
    while step < total:
        loss = accumulate_gradients(job, step)
        job.scaler.unscale_(job.optimizer)
        norm = None
        if config.train.clip_norm != "off":
            norm = torch.nn.utils.clip_grad_norm_(job.params, config.train.clip_norm)
        rates = set_learning_rates(job.optimizer, schedule_factor(config.optimizer, step, total))
        job.scaler.step(job.optimizer)
        job.scaler.update()
        job.adapter.after_step()
        job.optimizer.zero_grad(set_to_none=True)
        if job.average is not None:
            job.average.update(step)
        step += 1
        journal.step(step, loss, norm, rates)

        requests = job.run.take_requests() if runtime.is_main else []
        stop, stop_now, paints, saves = runtime.agree(
            [job.stop_requested() or "stop" in requests, "stop-now" in requests, "sample" in requests, "save" in requests]
        )
        # what was learnt is safe before anything is painted
        if step == total or saves or is_checkpoint_due(job, step):
            save_weights(job, step)
        if stop or stop_now or step == total or step % config.output.state_every_steps == 0 or is_checkpoint_due(job, step):
            save_state(job, step)
        if paints or (not stop_now and is_sample_due(job, step)):
            sample(job, step)
        if stop or stop_now:
            return step == total
    return True


def accumulate_gradients(job: Training, step: int) -> Tensor:
    """Forward and backward over the micro-batches of one step; returns the loss, a mean over all pictures of the step."""
    runtime, rank = job.runtime, job.runtime.rank
    micro_batches = job.dataset.order.step(step)
    count = sum(len(m) for m in micro_batches)
    loss = torch.zeros((), device=runtime.device)
    position = 0
    for number, indices in enumerate(micro_batches):
        if number % runtime.world == rank:
            batch = job.samples.batch(indices, step, position)
            job.adapter.begin(step, number)
            part = batch_loss(job, batch, step).sum() / count
            job.scaler.scale(part).backward()
            loss += part.detach()
        position += len(indices)
    runtime.sum_gradients(job.params)
    return runtime.sum_scalar(loss)


def batch_loss(job: Training, batch: Batch, step: int) -> Tensor:
    """The weighted loss of each picture, shape (B,)."""
    family, process, seed = job.family, job.family.process, job.config.train.seed
    x0 = draw_latents(batch, seed, step)
    noise = noise_like(x0, seed, step, batch.positions)
    t = process.draw(x0, seed, step, batch.positions)
    noisy = process.add_noise(x0, noise, t)
    with job.runtime.autocast():
        cond = batch.cond if batch.cond is not None else family.encode_captions(batch.captions) | batch.told
        pred = family.predict(noisy, t, cond)
    weight = snr_weight(
        process, t, process.prediction, job.config.objective.snr_gamma if job.config.objective.weighting == "min_snr" else "off"
    )
    loss = per_sample_loss(pred, process.target(x0, noise, t)) * weight
    weight_of_base = job.config.objective.preserve
    if weight_of_base != "off" and batch.class_cond is not None:
        loss = loss + weight_of_base * preservation_loss(job, noisy, t, batch.class_cond)
    return loss


def preservation_loss(job: Training, noisy: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """How far the adapted model has moved from the base model's prediction under class words, shape (B,).

    Differential output preservation: no class pictures are needed, the base model itself is the teacher.
    """
    with torch.no_grad(), job.adapter.suspended(), job.runtime.autocast():
        wanted = job.family.predict(noisy, t, cond)
    with job.runtime.autocast():
        return per_sample_loss(job.family.predict(noisy, t, cond), wanted)


# --- once in a while --------------------------------------------------------------------------------------------------


def is_due(job: Training, step: int, every_steps: int | None, every_epochs: int | None) -> bool:
    """Whether `step` (just finished) completes an interval given in steps or in epochs."""
    if every_steps is not None and step % every_steps == 0:
        return True
    if every_epochs is None:
        return False
    order = job.dataset.order
    return order.epoch_of(step) // every_epochs > order.epoch_of(step - 1) // every_epochs


def is_checkpoint_due(job: Training, step: int) -> bool:
    output = job.config.output
    return is_due(job, step, output.save_every_steps, output.save_every_epochs)


def is_sample_due(job: Training, step: int) -> bool:
    section = job.config.sample
    if step == 0:
        return section.at_start
    return step == job.dataset.total_steps or is_due(job, step, section.every_steps, section.every_epochs)


def has_samples(job: Training, step: int) -> bool:
    """Whether this step's pictures were all painted, before the run was stopped or killed there."""
    return not job.prompts or sample_path(job, step, len(job.prompts) - 1).exists()


def sample_path(job: Training, step: int, number: int) -> Path:
    return job.run.samples / f"step-{step:08d}_{number:02d}.png"


def with_average(job: Training) -> bool:
    """Put the averaged weights in place, if there are any; returns whether it must be undone by calling it again."""
    if job.average is not None:
        job.average.swap()
    return job.average is not None


def save_weights(job: Training, step: int) -> None:
    """Write a checkpoint and prune older ones."""
    total = job.dataset.total_steps
    job.journal.flush()
    job.journal.say(phase="saving", step=step)
    if job.runtime.is_main:
        averaged = with_average(job)
        refuse_non_finite(job, step)
        folder = checkpoint.output_folder(job.config, job.run.checkpoints)
        facts = job.facts | {"step": step, "epoch": job.dataset.order.epoch_of(step), "saved_at": time.time()}
        path = checkpoint.save_checkpoint(job.config, job.family, job.adapter, folder, facts)
        if averaged:
            with_average(job)
        checkpoint.verify(path)
        job.journal.event("checkpoint", step=step, path=str(path))
        if step < total:
            written = [*(n for n in job.written if n != path.name), path.name]
            job.written = checkpoint.prune_checkpoints(job.config, folder, written)
    job.runtime.barrier()
    job.journal.say(phase="training", progress=(step, total))


def save_state(job: Training, step: int) -> None:
    """Write a training state to resume from."""
    job.journal.flush()
    job.journal.say(phase="saving", step=step)
    if job.runtime.is_main:
        refuse_non_finite(job, step)
        session = {k: job.facts[k] for k in ("session_id", "started_at")}
        extra = {"written": job.written, "scaler": job.scaler.state_dict(), "session": session}
        extra |= {"data": job.dataset.fingerprint(), "circumstances": job.circumstances()}
        checkpoint.save_state(job.run.states, step, job.adapter, job.optimizer, job.average, extra)
        job.journal.event("state", step=step)
    job.runtime.barrier()
    job.journal.say(phase="training", progress=(step, job.dataset.total_steps))


def refuse_non_finite(job: Training, step: int) -> None:
    """Never write a weight that is no number."""
    if not all(bool(torch.isfinite(p).all()) for p in job.params):
        raise diverged(step, {g["name"]: g["lr"] for g in job.optimizer.param_groups})


def sample(job: Training, step: int) -> None:
    """Paint the prompts with the weights of this step."""
    if not job.prompts:
        return
    job.journal.flush()
    job.journal.say(phase="sampling", progress=(0, len(job.prompts)), step=step)
    if job.runtime.is_main:
        averaged = with_average(job)
        paint_previews(job, step)
        if averaged:
            with_average(job)
    job.runtime.barrier()
    job.journal.say(phase="training", progress=(step, job.dataset.total_steps))


def paint_previews(job: Training, step: int) -> None:
    keep_vae = job.samples.config.memory.cache_latents is False
    if not hasattr(job.family, "vae"):
        job.family.load("vae", job.family.keep.vae_dtype, job.runtime.device)
    encoded = job.encoded_prompts
    if job.samples.trains_text:
        encoded = paint.encode_prompts(job.family, job.runtime, job.prompts)
    pictures = paint.paint(job.family, job.runtime, job.prompts, encoded)
    for i, pixels in enumerate(pictures):
        path = sample_path(job, step, i)
        with disk.replacing(path) as temporary:
            paint.to_image(pixels).save(temporary, format="PNG")
        prompt = job.prompts[i]
        job.journal.event("sample", step=step, path=path.name, prompt=prompt.text, seed=prompt.seed)
        job.journal.say(progress=(i + 1, len(job.prompts)))
    if not keep_vae:
        job.family.free("vae")
