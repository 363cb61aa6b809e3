"""The pictures that a run paints on its way, with the weights of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL.Image import Image

from limner import disk
from limner.engine import loading, paint
from limner.engine.average import evaluation_weights
from limner.engine.compiled import uncompiled
from limner.engine.due import sample_path
from limner.engine.fit import is_out_of_memory
from limner.errors import StopRequested, printable
from limner.models.family import Conditioning
from limner.models.given_back import give_back

if TYPE_CHECKING:
    from limner.engine.training import Training


def sample(job: Training, step: int) -> bool:
    """Paint the prompts with the weights of this step. False if it was asked to stop before all were painted."""
    if not job.prompts:
        return True
    job.saver.collect(wait=True)
    job.watch.settle()
    job.journal.flush()
    job.journal.say(phase="sampling", progress=(0, len(job.prompts)), step=step)
    is_whole, reason = True, ""
    try:
        with evaluation_weights(job.optimizer, job.params, job.average), uncompiled(job.config.speed):
            is_whole = paint_previews(job, step)
    except Exception as error:
        if job.runtime.world > 1 or not is_out_of_memory(error):  # several paint together, and would wait for this one
            raise
        reason = printable(f"{type(error).__name__}: {error}", 150)
    if reason:  # out here what was being painted is forgotten
        give_back()
        said = f"memory ran out while painting at step {step}, and the rest was left out ({reason}); training goes on. "
        said += "Set memory.vae_tiling = true, or a smaller sample.width and sample.height"
        job.journal.event("warning", message=said)
    job.runtime.barrier()
    job.journal.say(phase="training", progress=(step, job.dataset.total_steps))
    return is_whole


def paint_previews(job: Training, step: int) -> bool:
    """Every process paints its share, in turns; the main one writes the files in the prompts' order. False if it was asked to
    stop before the last: between two pictures, or in the middle of one where no other process would wait for it.

    With a model that is shared out all compute each picture together.
    """
    encoded, runtime, count = job.encoded_prompts, job.runtime, len(job.prompts)
    if job.samples.trains_text:
        encoded = paint.encode_prompts(job.family, runtime, job.prompts)
    together = 1 if runtime.is_sharded else runtime.world
    with loading.lent(job.family, "vae", job.family.keep.vae_dtype, runtime.device, job.config.model):
        for first in range(0, count, together):
            job.journal.sign("sampling")
            if job.is_asked_to_stop():
                return False
            mine = first + (0 if runtime.is_sharded else runtime.rank)
            painted = None
            if mine < count:
                painted = _paint(job, mine, encoded)
                if painted is None:
                    return False
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
    return True


def _paint(job: Training, number: int, encoded: Sequence[tuple[Conditioning, Conditioning]]) -> Image | None:
    """One of the prompts; None if it was asked to stop meanwhile."""

    def look() -> None:
        job.journal.sign("sampling")
        if job.runtime.world == 1 and job.is_asked_to_stop():
            raise StopRequested

    its = slice(number, number + 1)
    try:
        (pixels,) = paint.paint(job.family, job.runtime, job.prompts[its], encoded[its], look=look)
    except StopRequested:
        return None
    return paint.to_image(pixels)
