"""Each combination that sd-scripts refuses by an assert is a finding, and its good neighbour none."""

from __future__ import annotations

from typing import Any

import pytest

from limner.sdscripts.rules import broken_rules

LORA, XL, WHOLE_XL, FLUX, WHOLE_FLUX = (
    "train_network.py", "sdxl_train_network.py", "sdxl_train.py", "flux_train_network.py", "flux_train.py",
)  # fmt: skip
CACHED = {"cache_text_encoder_outputs": True, "network_train_unet_only": True}
BUCKETS = {"enable_bucket": True, "resolution": 512}

CASES: list[tuple[str, str, str, dict[str, Any], dict[str, Any]]] = [
    ("color_aug", LORA, "sd1", {"cache_latents": True, "color_aug": True}, {"color_aug": True}),
    ("random_crop", LORA, "sd1", {"cache_latents_to_disk": True, "random_crop": True}, {"cache_latents": True}),
    ("shuffle_caption", XL, "sdxl", {**CACHED, "shuffle_caption": True}, {"shuffle_caption": True}),
    ("caption_dropout_rate", FLUX, "flux", {**CACHED, "caption_dropout_rate": 0.1}, {**CACHED, "caption_dropout_rate": 0.0}),
    ("token_warmup_step", XL, "sdxl", {**CACHED, "token_warmup_step": 5}, CACHED),
    ("cache_text_encoder_outputs", XL, "sdxl", {"cache_text_encoder_outputs": True}, CACHED),
    ("cache_text_encoder_outputs", WHOLE_XL, "sdxl", {**CACHED, "train_text_encoder": True}, CACHED),
    ("weighted_captions", XL, "sdxl", {**CACHED, "weighted_captions": True}, {"weighted_captions": True}),
    ("train_t5xxl", "sd3_train.py", "sd3", {**CACHED, "train_t5xxl": True}, CACHED),
    ("full_fp16", LORA, "sd1", {"full_fp16": True}, {"full_fp16": True, "mixed_precision": "fp16"}),
    ("full_bf16", LORA, "sd1", {"full_bf16": True, "mixed_precision": "fp16"}, {"full_bf16": True, "mixed_precision": "bf16"}),
    ("fp8_base", FLUX, "flux", {"fp8_base": True, "mixed_precision": "no"}, {"fp8_base": True, "mixed_precision": "bf16"}),
    ("fused_backward_pass", WHOLE_XL, "sdxl", {"fused_backward_pass": True, "optimizer_type": "AdamW"},
     {"fused_backward_pass": True, "optimizer_type": "Adafactor"}),
    ("gradient_accumulation_steps", WHOLE_XL, "sdxl",
     {"fused_backward_pass": True, "optimizer_type": "Adafactor", "gradient_accumulation_steps": 2},
     {"gradient_accumulation_steps": 2}),
    ("fused_backward_pass", WHOLE_XL, "sdxl",
     {"fused_backward_pass": True, "optimizer_type": "adafactor", "fused_optimizer_groups": 4}, {"fused_optimizer_groups": 4}),
    ("blockwise_fused_optimizers", WHOLE_FLUX, "flux",
     {"blockwise_fused_optimizers": True, "optimizer_type": "AdamWScheduleFree"}, {"blockwise_fused_optimizers": True}),
    ("blocks_to_swap", FLUX, "flux", {"blocks_to_swap": 8, "cpu_offload_checkpointing": True}, {"blocks_to_swap": 8}),
    ("block_lr", WHOLE_XL, "sdxl", {"block_lr": "1,2"}, {"block_lr": ",".join(["1"] * 23)}),
    ("adaptive_noise_scale", LORA, "sd1", {"adaptive_noise_scale": 0.1}, {"adaptive_noise_scale": 0.1, "noise_offset": 0.1}),
    ("scale_v_pred_loss_like_noise_pred", LORA, "sd2", {"scale_v_pred_loss_like_noise_pred": True},
     {"scale_v_pred_loss_like_noise_pred": True, "v_parameterization": True}),
    ("v_pred_like_loss", LORA, "sd2", {"v_pred_like_loss": 0.1, "v_parameterization": True}, {"v_pred_like_loss": 0.1}),
    ("loss_type", FLUX, "flux", {"loss_type": "huber"}, {"loss_type": "huber", "huber_schedule": "constant"}),
    ("lr_warmup_steps", LORA, "sd1", {"lr_warmup_steps": 5}, {"lr_warmup_steps": 5, "lr_scheduler": "constant_with_warmup"}),
    ("lr_warmup_steps", LORA, "sd1", {"lr_warmup_steps": 0.1, "lr_scheduler": "cosine", "lr_scheduler_type": "a.B"},
     {"lr_warmup_steps": 0.1, "lr_scheduler": "cosine"}),
    ("lr_warmup_steps", LORA, "sd1", {"lr_warmup_steps": 5, "lr_scheduler": "cosine", "optimizer_type": "AdaFactor"},
     {"lr_warmup_steps": 5, "lr_scheduler": "cosine", "optimizer_type": "AdaFactor",
      "optimizer_args": ["relative_step = False"]}),
]  # fmt: skip


def broken(script: str, family: str, given: dict[str, Any], *datasets: dict[str, Any]) -> list[str]:
    found = list(broken_rules(script, family, given, datasets))
    assert all(said.endswith(".") and remedy.endswith(".") for _, said, remedy in found)
    return [name for name, _, _ in found]


@pytest.mark.parametrize(("name", "script", "family", "bad", "good"), CASES)
def test_a_rule(name: str, script: str, family: str, bad: dict[str, Any], good: dict[str, Any]) -> None:
    assert broken(script, family, bad) == [name]
    assert broken(script, family, good) == []


def test_what_a_subset_says_counts_too() -> None:
    tables = {"subsets": [{"image_dir": "/x"}, {"image_dir": "/y", "color_aug": True, "shuffle_caption": True}]}
    assert broken(LORA, "sd1", {"cache_latents": True}, tables) == ["color_aug"]
    assert broken(XL, "sdxl", CACHED, tables) == ["shuffle_caption"]


@pytest.mark.parametrize(
    ("script", "family", "dataset", "names"),
    [
        (LORA, "sd1", {"bucket_reso_steps": 64}, []),
        (LORA, "sd1", {"bucket_reso_steps": 32}, ["bucket_reso_steps"]),
        (XL, "sdxl", {"bucket_reso_steps": 32}, []),
        (FLUX, "flux", {"bucket_reso_steps": 16}, ["bucket_reso_steps"]),
        (WHOLE_FLUX, "flux", {"bucket_reso_steps": 16}, []),
        ("sd3_train.py", "sd3", {"bucket_reso_steps": 8}, []),
        (LORA, "sd1", {"min_bucket_reso": 576}, ["min_bucket_reso"]),
        (LORA, "sd1", {"resolution": [512, 1088]}, ["max_bucket_reso"]),
        (LORA, "sd1", {"min_bucket_reso": 576, "bucket_no_upscale": True}, []),
        (LORA, "sd1", {"min_bucket_reso": 576, "enable_bucket": False, "bucket_reso_steps": 3}, []),
    ],
)
def test_buckets(script: str, family: str, dataset: dict[str, Any], names: list[str]) -> None:
    assert broken(script, family, {}, BUCKETS | dataset) == names
