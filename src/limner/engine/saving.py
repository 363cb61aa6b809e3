"""A run saves: a checkpoint to use, or a training state to resume from, aside or in the loop, by one process or all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING

import torch

from limner import disk
from limner.engine import checkpoint, shards
from limner.engine.aside import Copies, Told
from limner.engine.average import evaluation_weights
from limner.engine.finite import all_finite
from limner.engine.optimizer_state import tensors_of
from limner.engine.watch import Alarm
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
            refuse_too_large(job)
            if job.runtime.is_main:
                write_weights(job, step)


def write_weights(job: Training, step: int) -> None:
    """The main process's part of it: aside, or now."""
    config, folder = job.config, checkpoint.output_folder(job.config, job.run.checkpoints)
    if disk.mount_of(folder) != job.output_mount:
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
            parts = checkpoint.parts_of_state(job.adapter, job.optimizer, job.average, copies)
        if not runtime.is_main:
            deque(parts, maxlen=0)  # each sends its share to the main process, which writes
            return
        if job.saves_aside:
            parts = iter(list(parts))
        session = {k: job.facts[k] for k in ("session_id", "started_at")}
        extra = {"written": job.written, "scaler": job.scaler.state_dict(), "session": session}
        extra |= {"watch": job.watch.told(), "skips": [skip.told() for skip in job.skips]}
        extra |= {"data": job.dataset.fingerprint(), "circumstances": job.circumstances()}

        def write() -> Told:
            if is_needed:
                job.run.sync_events()  # what came before the step to resume from is told by nobody else
                checkpoint.save_state(job.run.states, step, parts, extra, copies)
            return {"kind": "state", "step": step}

        job.saver.do(write, aside=job.saves_aside)


@contextmanager
def saving(job: Training, step: int) -> Iterator[None]:
    """Inside, something is saved; what was saved at a step before is on the disk by then. Raises Alarm in all processes, with
    nothing saved, if something is no number."""
    if job.saved_at != step:
        job.saver.collect(wait=True)
        require_finite(job, step)
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


def require_finite(job: Training, step: int) -> None:
    """Raise Alarm, in all processes alike, if anything of a training state is no number."""
    job.watch.settle()
    averages = job.average.values if job.average is not None else []
    held = map(shards.local, chain(job.params, tensors_of(job.optimizer), averages))
    if job.runtime.any(not all_finite(held)):
        raise Alarm(step, f"what was learnt at step {step} is not a number any more", step)


def refuse_too_large(job: Training) -> None:
    """Never write a whole model whose weights are infinite in the file's precision; an adapter's are looked at in the file."""
    if not job.config.adapter.trains_base:
        return
    fit = all_finite(map(shards.local, job.params), PRECISIONS[job.config.output.dtype])
    if job.runtime.any(not fit) if job.runtime.is_sharded else not fit:
        raise checkpoint.too_large(job.config)
