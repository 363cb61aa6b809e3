"""Write a model of Stable Diffusion 1.5's size with random weights, for measurements of time and memory.

python scripts/random_sd15.py FOLDER [--dtype fp32|fp16]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from limner.models.sd1 import CONFIGS
from limner.models.text import clip_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32")
    args = parser.parse_args()
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[args.dtype]
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_config(json.loads((CONFIGS / "vae/config.json").read_text())).to(dtype),  # type: ignore[attr-defined]
        unet=UNet2DConditionModel.from_config(json.loads((CONFIGS / "unet/config.json").read_text())).to(dtype),  # type: ignore[attr-defined]
        text_encoder=CLIPTextModel(CLIPTextConfig.from_pretrained(CONFIGS / "text_encoder")).to(dtype),
        tokenizer=clip_tokenizer(),
        scheduler=PNDMScheduler.from_pretrained(CONFIGS / "scheduler"),
        safety_checker=None,  # type: ignore[arg-type]
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    ).save_pretrained(args.folder, safe_serialization=True)


if __name__ == "__main__":
    main()
