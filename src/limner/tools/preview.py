"""A picture painted without and with what a tool made, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limner import disk
from limner.config import Config, files
from limner.config.prompts import Prompt, all_prompts
from limner.errors import Finding, UserError
from limner.formats.base import base_of
from limner.formats.suited import require_suited
from limner.tools.outline import named

if TYPE_CHECKING:
    from PIL import Image

PAINTED = ".preview.png"
"""How the picture's name ends, behind the name of what was made."""


def place(output: Path) -> Path:
    """Where the picture of a file or folder goes."""
    stem = output.stem if output.suffix == ".safetensors" else output.name
    return output.with_name(stem + PAINTED)


def check(model: Mapping[str, Any], prompt: str, section: str) -> None:
    """Raises UserError, under the tool's options, unless this can be painted with this model (entries of [model])."""
    _asked(model, prompt, section)


def not_painted(error: UserError) -> list[Finding]:
    """What is said when all else is done and the picture failed."""
    return [replace(f, message=f"the preview was not painted: {f.message}", severity="warning") for f in error.findings]


def paint(path: Path, before: Mapping[str, Any], after: Mapping[str, Any], prompt: str, section: str) -> None:
    """Write the picture of two models (entries of [model]): the first left, the second right."""
    from PIL import Image

    left, right = (_painted(*_asked(model, prompt, section)) for model in (before, after))
    both = Image.new("RGB", (left.width + right.width, max(left.height, right.height)))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    with disk.replacing(path) as temporary:
        both.save(temporary, format="PNG")


def _asked(model: Mapping[str, Any], prompt: str, section: str) -> tuple[Config, list[Prompt]]:
    fields = {"model.base": f"{section}.base", "model.config": f"{section}.config", "model.merge": f"{section}.loras"}
    with named({**fields, "sample.prompts[0]": f"{section}.preview_prompt", "sample.prompts": f"{section}.preview_prompt"}):
        config = files.build({"model": dict(model), "sample": {"prompts": [prompt]}}, {})
        base = base_of(config.model)
        prompts = all_prompts(config, base.resolution_px, base.bucket_step_px)
        require_suited(prompts, base)
    return config, prompts


def _painted(config: Config, prompts: list[Prompt]) -> Image.Image:
    import torch

    from limner.engine import fetching, loading, paint
    from limner.engine.runtime import Runtime
    from limner.engine.sampling import best_device
    from limner.models import family as families

    kind = best_device()
    runtime = Runtime(torch.device(kind), "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "fp32")
    family = families.make(fetching.find_base(config))
    # one part after the other: together they need not fit
    loading.load(family, "text", runtime.dtype, runtime.device, config.model)
    encoded = paint.encode_prompts(family, runtime, prompts)
    family.free("text")
    loading.load(family, "denoiser", runtime.dtype, runtime.device, config.model)
    family.load("vae", torch.float32, runtime.device)
    return paint.to_image(next(paint.paint(family, runtime, prompts, encoded)))
