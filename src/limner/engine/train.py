"""The training loop, from a prepared run folder to a finished file. It reads as the algorithm."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limner import disk
from limner.adapters.adapter import Adapter
from limner.changes import Change
from limner.config import Config
from limner.config.prompts import Prompt
from limner.data.dataset import Dataset
from limner.diffusion.timesteps import Timesteps, timesteps_of
from limner.engine import checkpoint, graphs, hints, live, loading, paint, shards, validation
from limner.engine.attention import attending_by
from limner.engine.average import Average, evaluation_weights
from limner.engine.compiled import uncompiled
from limner.engine.feed import AHEAD, Feed, places
from limner.engine.journal import Journal, diverged
from limner.engine.meter import Meter
from limner.engine.objective import Question, answer_loss
from limner.engine.one_by_one import OneByOne
from limner.engine.optimizers import make_optimizer, set_learning_rates
from limner.engine.runtime import Runtime
from limner.engine.samples import Samples
from limner.engine.saving import Copies, Saver, Told, fits_aside
from limner.engine.schedules import schedule_factor
from limner.models.family import Conditioning, Family
from limner.models.weights import PRECISIONS
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
    validation: Samples | None = None
    """The held-out pictures."""
    pending: list[Change] = field(default_factory=list)
    """Live changes that an earlier trainer of this run made behind the step to resume from: made again at their steps."""
    written: list[str] = field(default_factory=list)
    """Checkpoints written on the way, oldest first."""
    timesteps: Timesteps = field(init=False)
    optimizer: torch.optim.Optimizer | OneByOne = field(init=False)
    average: Average | None = field(init=False, default=None)
    params: list[torch.nn.Parameter] = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    """Keeps small gradients from vanishing in float16; does nothing in other precisions."""
    graphs: graphs.Graphs | None = field(init=False, default=None)
    feed: Feed = field(init=False)
    saver: Saver = field(init=False)
    saves_aside: bool = field(init=False)
    """Whether files are written while the loop goes on. A whole model is not: it would have to be in memory twice."""
    saved_at: int | None = field(init=False, default=None)
    """The step of the last save."""
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.timesteps = timesteps_of(self.config.objective, self.family.process)
        groups = self.adapter.parameter_groups(self.config.optimizer, self.learning_rate)
        self.params = [p for g in groups for p in g["params"]]
        self.optimizer = make_optimizer(self.config.optimizer, groups, self.runtime.device, self.config.train.seed)
        self.scaler = torch.amp.GradScaler(self.runtime.device.type, enabled=self.runtime.precision == "fp16")
        if self.config.train.ema != "off":
            device = torch.device("cpu") if self.config.train.ema_device == "cpu" else None
            self.average = Average(self.params, self.config.train.ema, device)
        if self.config.speed.cuda_graph:
            self.graphs = graphs.on_gpu(lambda question, count: learn(self, question, count), self.params)
        self.feed = Feed(self, AHEAD if self.runtime.device.type == "cuda" else 0)
        self.saver = Saver(self.journal.event)
        self.saves_aside = not self.config.adapter.trains_base and fits_aside(self.params)
        device, situation = self.runtime.device, hints.situation(self.config, self.runtime.device.type)
        self.meter = self.journal.meter = Meter(device, self.runtime.precision, situation, is_on=self.runtime.is_main)

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
    journal.say(status="running", phase="training", progress=(step, total), step=step, steps=total)
    if is_validation_due(job, step) and not runtime.share(has_validation(job, step)):
        validate(job, step)
    if is_sample_due(job, step) and not runtime.share(has_samples(job, step)):
        sample(job, step)
    while step < total:
        measured = move_weights(job, step)
        job.meter.end()
        step += 1
        journal.step(step, *measured)
        job.saver.collect()

        requests = job.run.take_requests() if journal.is_main else []
        changes = live.take(job, step) if runtime.is_main else []
        stop, stop_now, paints, saves, changed = runtime.agree(
            [job.stop_requested() or "stop" in requests, "stop-now" in requests, "sample" in requests, "save" in requests,
             bool(changes)]
        )  # fmt: skip
        if changed:
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
    loss = accumulate_gradients(job, step)  # may move the weights already: optimizer.in_backward
    moves = not scaler.is_enabled() or any(p.grad is not None for p in job.params)
    if moves:
        scaler.unscale_(optimizer)  # pyright: ignore[reportArgumentType] (in fp16 it is a real one)
    norm = None if limit == "off" else shards.whole(torch.nn.utils.clip_grad_norm_(job.params, limit))
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
    runtime.sum_gradients(job.params)
    return runtime.sum_scalar(loss)


def learn(job: Training, question: Question, count: int | Tensor) -> Tensor:
    """Forward and backward over a micro-batch; returns its share of the loss, a mean over `count` pictures."""
    with attending_by(job.config.speed.attention):
        part = answer_loss(job, question).sum() / count
        if part.requires_grad:  # not if every layer was left out
            job.scaler.scale(part).backward()
    return part.detach()


def count_aside(job: Training, question: Question) -> None:
    """Let the meter count a micro-batch that is computed for nothing else: to count what is compiled it would have to be
    computed otherwise, and a resumed run would differ by rounding."""
    with uncompiled(job.config.speed), job.meter.counting(question.batch):
        loss = answer_loss(job, question).sum()
        if loss.requires_grad:
            torch.autograd.grad(loss, job.params, allow_unused=True)


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


def is_validation_due(job: Training, step: int) -> bool:
    section = job.config.validation
    if job.validation is None or step in (0, job.dataset.total_steps):
        return job.validation is not None
    is_given = section.every_steps is not None or section.every_epochs is not None
    return is_due(job, step, section.every_steps, section.every_epochs if is_given else 1)


def has_validation(job: Training, step: int) -> bool:
    """Whether this step's validation loss was noted, before the run was stopped or killed there."""
    return any(e.get("event") == "validation" and e.get("step") == step for e in job.run.history())


def has_samples(job: Training, step: int) -> bool:
    """Whether this step's pictures were all painted, before the run was stopped or killed there."""
    return not job.prompts or sample_path(job, step, len(job.prompts) - 1).exists()


def sample_path(job: Training, step: int, number: int) -> Path:
    return job.run.samples / f"step-{step:08d}_{number:02d}.png"


def save_weights(job: Training, step: int) -> None:
    """Save a checkpoint and prune older ones."""
    with saving(job, step):
        if not (job.runtime.is_main or job.runtime.is_sharded):
            return
        with evaluation_weights(job.optimizer, job.params, job.average), whole_model(job):
            refuse_non_finite(job, step)
            if job.runtime.is_main:
                write_weights(job, step)


def write_weights(job: Training, step: int) -> None:
    """The main process's part of it: aside, or now."""
    config, folder = job.config, checkpoint.output_folder(job.config, job.run.checkpoints)
    facts = job.facts | {"step": step, "epoch": job.dataset.order.epoch_of(step), "saved_at": time.time()}
    writers = checkpoint.checkpoint_writers(config, job.family, job.adapter, folder, facts)
    path, *others = writers
    superfluous = list[str]()
    if step < job.dataset.total_steps:
        job.written = [*(n for n in job.written if n != path.name), path.name]
        superfluous = checkpoint.superfluous(config, job.written)
        job.written = job.written[len(superfluous) :]

    def write() -> Told:
        for write_one in writers.values():
            write_one()
        for written in writers:
            checkpoint.verify(written)
        checkpoint.delete_checkpoints(config, folder, superfluous)
        beside = {"embedding": str(others[0])} if others else {}
        return {"kind": "checkpoint", "step": step, "path": str(path), **beside}

    job.saver.do(write, aside=job.saves_aside)


def whole_model(job: Training) -> AbstractContextManager[None]:
    """Inside, the main process has the whole of a model that is shared out."""
    if not job.runtime.is_sharded:
        return nullcontext()
    return shards.gathered(job.family.denoiser, PRECISIONS[job.config.output.dtype], job.runtime)


def save_state(job: Training, step: int) -> None:
    """Save a training state to resume from."""
    runtime = job.runtime
    with saving(job, step):
        is_needed = runtime.is_main and not checkpoint.has_state(job.run.states, step)
        is_needed = runtime.any(is_needed) if runtime.is_sharded else is_needed
        copies, parts = Copies(), iter(list[checkpoint.Part]())
        if is_needed:
            refuse_non_finite(job, step)
            parts = checkpoint.parts_of_state(job.adapter, job.optimizer, job.average, copies)
        if not runtime.is_main:
            deque(parts, maxlen=0)  # each sends its share to the main process, which writes
            return
        if job.saves_aside:
            parts = iter(list(parts))
        session = {k: job.facts[k] for k in ("session_id", "started_at")}
        extra = {"written": job.written, "scaler": job.scaler.state_dict(), "session": session}
        extra |= {"data": job.dataset.fingerprint(), "circumstances": job.circumstances()}

        def write() -> Told:
            if is_needed:
                checkpoint.save_state(job.run.states, step, parts, extra, copies)
            return {"kind": "state", "step": step}

        job.saver.do(write, aside=job.saves_aside)


@contextmanager
def saving(job: Training, step: int) -> Iterator[None]:
    """Inside, something is saved; what was saved at a step before is on the disk by then."""
    if job.saved_at != step:
        job.saver.collect(wait=True)
        job.saved_at = step
    job.journal.flush()
    if job.saves_aside:
        yield
        return
    job.journal.say(phase="saving", step=step)
    yield
    job.runtime.barrier()
    job.journal.say(phase="training", progress=(step, job.dataset.total_steps))


def refuse_non_finite(job: Training, step: int) -> None:
    """Never write a weight that is no number."""
    is_finite = bool(torch.stack([torch.isfinite(shards.local(p.detach())).all() for p in job.params]).all())
    if job.runtime.any(not is_finite) if job.runtime.is_sharded else not is_finite:
        raise diverged(step, {g["name"]: g["lr"] for g in job.optimizer.param_groups})


def validate(job: Training, step: int) -> None:
    """Measure the loss on the held-out pictures with the weights that a checkpoint of this step would hold."""
    job.saver.collect(wait=True)
    job.journal.flush()
    job.journal.say(phase="validating", step=step)
    with evaluation_weights(job.optimizer, job.params, job.average), uncompiled(job.config.speed):
        loss = validation.measure(job)
    if math.isfinite(loss):
        job.journal.event("validation", step=step, loss=loss)
    job.journal.say(phase="training", progress=(step, job.dataset.total_steps))


def sample(job: Training, step: int) -> None:
    """Paint the prompts with the weights of this step."""
    if not job.prompts:
        return
    job.saver.collect(wait=True)
    job.journal.flush()
    job.journal.say(phase="sampling", progress=(0, len(job.prompts)), step=step)
    with evaluation_weights(job.optimizer, job.params, job.average), uncompiled(job.config.speed):
        paint_previews(job, step)
    job.runtime.barrier()
    job.journal.say(phase="training", progress=(step, job.dataset.total_steps))


def paint_previews(job: Training, step: int) -> None:
    """Every process paints its share, in turns; the main one writes the files in the prompts' order.

    With a model that is shared out all compute each picture together.
    """
    encoded, runtime, count = job.encoded_prompts, job.runtime, len(job.prompts)
    if job.samples.trains_text:
        encoded = paint.encode_prompts(job.family, runtime, job.prompts)
    together = 1 if runtime.is_sharded else runtime.world
    with loading.lent(job.family, "vae", job.family.keep.vae_dtype, runtime.device, job.config.model):
        for first in range(0, count, together):
            mine = first + (0 if runtime.is_sharded else runtime.rank)
            painted = None
            if mine < count:
                (pixels,) = paint.paint(job.family, runtime, job.prompts[mine : mine + 1], encoded[mine : mine + 1])
                painted = paint.to_image(pixels)
            pictures = runtime.shares(painted) if together > 1 else [painted]
            if not runtime.is_main:
                continue
            for i, picture in enumerate(pictures[: count - first], first):
                assert picture is not None
                path, prompt = sample_path(job, step, i), job.prompts[i]
                with disk.replacing(path) as temporary:
                    picture.save(temporary, format="PNG")
                job.journal.event("sample", step=step, path=path.name, prompt=prompt.text, seed=prompt.seed)
                job.journal.say(progress=(i + 1, count))
