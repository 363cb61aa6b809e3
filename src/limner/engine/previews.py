"""The pictures that a run paints on its way, with the weights of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limner import disk
from limner.engine import loading, paint
from limner.engine.average import evaluation_weights
from limner.engine.compiled import uncompiled
from limner.engine.due import sample_path

if TYPE_CHECKING:
    from limner.engine.training import Training


def sample(job: Training, step: int) -> None:
    """Paint the prompts with the weights of this step."""
    if not job.prompts:
        return
    job.saver.collect(wait=True)
    job.watch.settle()
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
