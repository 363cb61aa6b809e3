"""Tiny, really built models of each family with random weights, as diffusers folders, and small picture sets."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from limner.models.text import END, EXCLAMATION, clip_tokenizer


def build(folder: Path, prediction: str = "epsilon", seed: int = 0, family: str = "sd1") -> Path:
    """Write the model; VAE factor 2, latents of 4 channels, bucket step 4. The text is 16 numbers wide, SDXL's 16 + 24."""
    torch.manual_seed(seed)
    is_xl = family == "sdxl"
    told = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 48}
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D") if is_xl else ("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D") if is_xl else ("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=[1, 2] if is_xl else 1,
        cross_attention_dim=40 if is_xl else 16,
        attention_head_dim=2,
        norm_num_groups=4,
        use_linear_projection=family != "sd1",
        **(told if is_xl else {}),
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
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    parts = {"vae": vae, "unet": unet, "scheduler": scheduler, "text_encoder": CLIPTextModel(_text(16))}
    parts["tokenizer"] = clip_tokenizer(EXCLAMATION if family == "sd2" else END)
    if is_xl:
        parts |= {"text_encoder_2": CLIPTextModelWithProjection(_text(24)), "tokenizer_2": clip_tokenizer(EXCLAMATION)}
        StableDiffusionXLPipeline(**parts).save_pretrained(folder)
        return folder
    without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **without).save_pretrained(folder)
    return folder


def _text(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=width, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip


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
