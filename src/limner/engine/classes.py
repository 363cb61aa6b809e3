"""Paint the class pictures that are missing with the base model, before anything is trained."""

from __future__ import annotations

import json

from PIL.PngImagePlugin import PngInfo

from limner import disk
from limner.config import Config
from limner.data.classes import MARK, free_numbers, painted_path, painter, prompt_of
from limner.data.dataset import bucket_rule
from limner.engine import loading, paint
from limner.engine.runtime import Runtime
from limner.engine.samples import Progress
from limner.formats.suited import require_suited
from limner.models.family import Family


def paint_class_pictures(config: Config, family: Family, runtime: Runtime, count: int, progress: Progress) -> None:
    """Paint `count` more pictures into data.class_path, each process its share. No part needs to be loaded, none stays so.

    One at a time, each from the seed of its number: where it was stopped before makes no difference to any of them.
    """
    folder, base = config.data.class_path, family.base
    assert folder is not None
    numbers, (share, shares) = free_numbers(folder, count), runtime.sharers(folder)
    runtime.barrier()  # nobody paints before everybody has looked
    numbers = numbers[share::shares]
    side = bucket_rule(config, base).resolution // base.bucket_step_px * base.bucket_step_px
    prompts = [prompt_of(config, side, n) for n in numbers]
    require_suited(prompts[:1], base)
    progress(0, len(numbers))
    loading.load(family, "text", runtime.dtype, runtime.device, config.model)
    encoded = paint.encode_prompts(family, runtime, prompts[:1])
    family.free("text")
    loading.load(family, "denoiser", runtime.dtype, runtime.device, config.model)
    family.load("vae", family.keep.vae_dtype, runtime.device)
    name = painter(config.model, base.path)

    def look(turn: int) -> None:
        if runtime.world == 1:  # else another would wait for the rest of the picture
            progress(turn, len(numbers))

    for turn in range(runtime.most(len(numbers))):
        for number, prompt in zip(numbers[turn : turn + 1], prompts[turn : turn + 1], strict=True):
            pixels = next(paint.paint(family, runtime, [prompt], encoded, look=lambda turn=turn: look(turn)))
            mark = PngInfo()
            mark.add_text(MARK, json.dumps({"base": name, "prompt": prompt.text, "seed": prompt.seed}))
            with disk.replacing(painted_path(folder, number)) as temporary:
                paint.to_image(pixels).save(temporary, format="PNG", pnginfo=mark)
        progress(min(turn + 1, len(numbers)), len(numbers))  # in step with the others
    family.free("vae")
    family.free("denoiser")
    runtime.barrier()
