"""Examine what a LoRA taught the pocket model: the same prompts and seeds before and after, judged by pixels."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from limner import disk
from limner.config import Config
from limner.config.prompts import Prompt
from limner.engine import paint, sampling
from limner.engine.runtime import Runtime
from limner.models.family import Family
from limner.pocket import PICTURES, exam

_TOGETHER = 64
STEPS, GUIDANCE = 20, 1.0  # the model as it is: guidance would double the time, and paints neither more rightly (measured)


@dataclass
class Painted:
    """What one model painted: the new thing's pictures, and those of prompts without the trigger."""

    thing: list[np.ndarray]
    scenes: list[np.ndarray]


def examine(lora: Path, num_scenes: int) -> tuple[dict, Painted, Painted]:
    """(report, before, after): the new thing asked for with 16 prompts x 4 seeds, and `num_scenes` other captions."""
    torch.set_grad_enabled(False)
    runtime = Runtime(torch.device(sampling.best_device()), "fp32")
    family = sampling.load_whole(Config(), runtime)
    asked = [(scene, seed) for scene in exam.thing_scenes()[1] for seed in range(exam.NUM_SEEDS)]
    wanted = exam.held_out_scenes(num_scenes)
    things = [(scene.caption, 100 + seed) for scene, seed in asked]
    others = [(caption, 1000 + i) for i, (_, caption) in enumerate(wanted)]
    before = Painted(paint_all(family, runtime, things), paint_all(family, runtime, others))
    sampling.load_lora(family, lora)
    after = Painted(paint_all(family, runtime, things), paint_all(family, runtime, others))
    training = [np.asarray(Image.open(p).convert("RGB")) for p in sorted(PICTURES.glob("*.png"))]
    distances = exam.nearest_distances(after.thing, training)
    backgrounds = [scene.background for scene, _ in asked]
    report = {
        "new_thing": {
            "before": exam.score_thing(before.thing, backgrounds),
            "after": exam.score_thing(after.thing, backgrounds),
        },
        "nearest_training_picture_rms": {"least": min(distances), "median": float(np.median(distances))},
        "other_captions": {
            "before": exam.score_scenes(before.scenes, wanted),
            "after": exam.score_scenes(after.scenes, wanted),
        },
    }
    return report, before, after


def paint_all(family: Family, runtime: Runtime, asked: Sequence[tuple[str, int]]) -> list[np.ndarray]:
    """What the model makes of (prompt, seed) pairs, as 8-bit RGB."""
    prompts = [Prompt(text, "", 64, 64, STEPS, GUIDANCE, seed, "ddim") for text, seed in asked]
    encoded = paint.encode_prompts(family, runtime, prompts)
    return [np.asarray(paint.to_image(p)) for p in paint.paint(family, runtime, prompts, encoded, together=_TOGETHER)]


def write_grid(path: Path, before: Painted, after: Painted) -> None:
    """The before/after sheet: some of the pictures shown, then eight prompts with two seeds each, without and with LoRA."""
    side, gap, head, text_width = 96, 6, 22, 250
    captions = [scene.caption for scene in exam.thing_scenes()[1]][:8]
    shown = sorted(PICTURES.glob("*.png"))[:7]
    width = text_width + 4 * side + 5 * gap
    height = 2 * head + side + gap + len(captions) * (side + gap) + head
    sheet = Image.new("RGB", (width, height), (250, 250, 250))
    canvas = ImageDraw.Draw(sheet)
    canvas.text((gap, gap), f"what it was shown of it ({exam.NUM_PICTURES} pictures, here {len(shown)})", fill=(30, 30, 30))
    small = (width - gap) // len(shown) - gap
    for i, picture in enumerate(shown):
        sheet.paste(Image.open(picture).convert("RGB").resize((small, small)), (gap + i * (small + gap), head))
    top = head + small + gap
    for x, words in ((text_width, "before"), (text_width + 2 * (side + gap) + gap, "after")):
        canvas.text((x, top + 6), words, fill=(30, 30, 30))
    for row, caption in enumerate(captions):
        y = top + head + row * (side + gap)
        for i, line in enumerate(textwrap.wrap(caption, 38)):
            canvas.text((gap, y + 28 + 14 * i), line, fill=(30, 30, 30))
        for column in range(4):
            source = before if column < 2 else after
            picture = Image.fromarray(source.thing[row * exam.NUM_SEEDS + column % 2])
            picture = picture.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(picture, (text_width + column * (side + gap) + (gap if column >= 2 else 0), y))
    with disk.replacing(path) as temporary:
        sheet.crop((0, 0, width, top + head + len(captions) * (side + gap))).save(temporary, format="PNG")


def main(lora: str, out: str, num_scenes: str) -> None:
    """Examine a LoRA file and write `report.json` and `before-after.png` into a folder."""
    report, before, after = examine(Path(lora), int(num_scenes))
    disk.write_json(Path(out) / "report.json", report)
    write_grid(Path(out) / "before-after.png", before, after)


if __name__ == "__main__":
    main(*sys.argv[1:])
