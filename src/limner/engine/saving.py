"""A run saves: a checkpoint to use, or a training state to resume from, aside or in the loop, by one process or all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from limner import disk
from limner.engine import checkpoint, shards
from limner.engine.aside import Copies, Told
from limner.engine.average import evaluation_weights
from limner.engine.journal import diverged
from limner.errors import wrong
from limner.models.weights import PRECISIONS

if TYPE_CHECKING:
    from limner.engine.training import Training


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
    if disk.disk_of(folder) != job.output_disk:
        said = f"{folder} is on another disk than when the run began: that one is gone."
        raise wrong("output.path", said, "Bring it back and resume the run.")
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
                job.run.sync_events()  # what came before the step to resume from is told by nobody else
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


def keep_last_step(job: Training) -> None:
    """After memory ran out: save the training state of the last finished step, if its weights are still whole."""
    job.optimizer.zero_grad(set_to_none=True)
    if job.is_moving or not job.done:
        return
    job.saves_aside = False  # there is no room for copies, and nothing to go on with meanwhile
    try:
        save_state(job, job.done)
    except (torch.OutOfMemoryError, MemoryError):
        job.journal.event("warning", message="there was no memory left to save the last step; going on from an older one")


def refuse_non_finite(job: Training, step: int) -> None:
    """Never write a weight that is no number."""
    is_finite = bool(torch.stack([torch.isfinite(shards.local(p.detach())).all() for p in job.params]).all())
    if job.runtime.any(not is_finite) if job.runtime.is_sharded else not is_finite:
        raise diverged(step, {g["name"]: g["lr"] for g in job.optimizer.param_groups})
