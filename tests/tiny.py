"""A tiny, really built Stable Diffusion 1 model with random weights, as a diffusers folder, and small picture sets."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from limner.models.text import clip_tokenizer


def build(folder: Path, prediction: str = "epsilon", seed: int = 0) -> Path:
    """Write the model; VAE factor 2, latents of 4 channels, bucket step 4."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
        scaling_factor=0.5,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
        )
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=text, tokenizer=tokenizer, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def pictures(
    folder: Path, sizes: tuple[tuple[int, int], ...] = ((40, 40), (60, 40), (40, 60), (33, 47)), seed: int = 0
) -> Path:
    """Noise pictures of the given sizes, captioned."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for i, (width, height) in enumerate(sizes):
        Image.frombytes("RGB", (width, height), rng.randbytes(width * height * 3)).save(folder / f"p{i}.png")
        (folder / f"p{i}.txt").write_text(f"picture number {i}", encoding="utf-8")
    return folder


def toml(**sections: dict) -> str:
    """A configuration's text from nested dicts of plain values."""
    lines = []
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
    return "\n".join(lines) + "\n"
