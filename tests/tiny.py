"""Tiny, really built models of each family with random weights, as diffusers folders, and small picture sets."""

from __future__ import annotations

import copy
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from limner.adapters.layered import LayerAdapter
from limner.formats.base import recognise
from limner.models import family as families
from limner.models.family import Keep
from limner.models.text import END, EXCLAMATION, clip_tokenizer


def build(folder: Path, prediction: str = "epsilon", seed: int = 0, family: str = "sd1") -> Path:
    """Write the model; VAE factor 2, latents of 4 channels, bucket step 4. The text is 16 numbers wide, SDXL's 16 + 24."""
    torch.manual_seed(seed)
    if family in ("sd3", "flux"):
        return _flow(folder, family)
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
    vae = _vae(4)
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


def _flow(folder: Path, family: str) -> Path:
    """SD 3's last block leads nowhere on its text side; its first attends twice, as 3.5 medium's do. Flux is dev."""
    vae, clip, t5 = _vae(16, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False), _text(16), _t5(40)
    parts: dict[str, Any] = {"vae": vae, "tokenizer": clip_tokenizer(END)}
    if family == "sd3":
        transformer = SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=40, caption_projection_dim=16, pooled_projection_dim=40,
            pos_embed_max_size=32, dual_attention_layers=(0,), qk_norm="rms_norm",
        )  # fmt: skip
        parts |= {
            "text_encoder": CLIPTextModelWithProjection(clip), "text_encoder_2": CLIPTextModelWithProjection(_text(24)),
            "text_encoder_3": t5, "tokenizer_2": clip_tokenizer(EXCLAMATION), "tokenizer_3": _t5_tokenizer(),
        }  # fmt: skip
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, **parts).save_pretrained(folder)
        return folder
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=40, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6), guidance_embeds=True,
    )  # fmt: skip
    parts |= {"text_encoder": CLIPTextModel(clip), "text_encoder_2": t5, "tokenizer_2": _t5_tokenizer()}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    FluxPipeline(transformer=transformer, scheduler=scheduler, **parts).save_pretrained(folder)
    return folder


def _vae(channels: int, **others: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=32,
        scaling_factor=0.5,
        **others,
    )


def _t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
            is_encoder_decoder=False, use_cache=False,
        )
    )  # fmt: skip


def _t5_tokenizer() -> T5Tokenizer:
    """One token a letter."""
    letters = [("\u2581", -2.0), *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz0123456789,.!()")]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], extra_ids=0)


def _text(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=width, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip


def loaded(folder: Path, keep: Keep = Keep(), device: torch.device = torch.device("cpu")) -> Any:
    """A model's family with its text encoders and its denoiser in float32."""
    family = families.make(recognise(str(folder)), keep)
    family.load("text", torch.float32, device)
    family.load("denoiser", torch.float32, device)
    return family


@cache
def _loaded(folder: Path) -> Any:
    return loaded(folder)


def fresh(folder: Path) -> Any:
    """As `loaded`, of a model that is asked for again and again: a copy, which is faster than reading it anew."""
    family = copy.copy(_loaded(folder))
    family.denoiser, family.text_encoders = copy.deepcopy((family.denoiser, family.text_encoders))
    return family


def moved(adapter: LayerAdapter, scale: float = 0.1) -> LayerAdapter:
    """An attached adapter, far away from where it began."""
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, layer in adapter.layers.values():
            for p in layer.parameters():
                p.add_((torch.randn(p.shape, generator=rng) * scale).to(p.device))
    return adapter


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
