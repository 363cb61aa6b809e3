"""The GUI's keys that are an argument of sd-scripts each, whatever else the form says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from limner.config.kohya.gui.form import Form


@dataclass(frozen=True)
class Rule:
    """How one key is passed on."""

    kind: Literal["flag", "whole", "number", "text"]
    argument: str = ""
    """The argument's name, the key's own if empty."""
    zero: bool = True
    """Whether 0 is a value; else it means none. The GUI sends no 0 at all, so that the trainer's default takes its place."""
    family: str = ""
    """The one family for which the GUI passes it on."""


def _rules(keys: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(keys.split(), rule)


_FLUX, _SD3, _SDXL = "flux", "sd3", "sdxl"

RULES: dict[str, Rule] = {
    **_rules(
        "cache_latents cache_latents_to_disk enable_bucket bucket_no_upscale color_aug flip_aug random_crop shuffle_caption"
        " weighted_captions masked_loss gradient_checkpointing full_fp16 full_bf16 mem_eff_attn persistent_data_loader_workers"
        " skip_cache_check highvram ip_noise_gamma_random_strength scale_v_pred_loss_like_noise_pred debiased_estimation_loss"
        " save_state save_state_on_train_end log_config fp8_base fp8_base_unet v_parameterization no_token_padding"
        " dim_from_weights disable_mmap_load_safetensors async_upload save_state_to_huggingface",
        Rule("flag"),
    ),
    "lowvram": Rule("flag", "lowram"),
    "sdxl_no_half_vae": Rule("flag", "no_half_vae"),
    "sdxl_cache_text_encoder_outputs": Rule("flag", "cache_text_encoder_outputs", family=_SDXL),
    "fused_backward_pass": Rule("flag", family=_SDXL),
    **_rules("save_clip save_t5xxl", Rule("flag", family=_SD3)),
    "sd3_cache_text_encoder_outputs": Rule("flag", "cache_text_encoder_outputs", family=_SD3),
    "sd3_cache_text_encoder_outputs_to_disk": Rule("flag", "cache_text_encoder_outputs_to_disk", family=_SD3),
    "sd3_fused_backward_pass": Rule("flag", "fused_backward_pass", family=_SD3),
    "sd3_disable_mmap_load_safetensors": Rule("flag", "disable_mmap_load_safetensors", family=_SD3),
    "sd3_enable_scaled_pos_embed": Rule("flag", "enable_scaled_pos_embed", family=_SD3),
    **_rules(
        "apply_t5_attn_mask mem_eff_save cpu_offload_checkpointing split_mode blockwise_fused_optimizers",
        Rule("flag", family=_FLUX),
    ),
    "flux1_cache_text_encoder_outputs": Rule("flag", "cache_text_encoder_outputs", family=_FLUX),
    "flux1_cache_text_encoder_outputs_to_disk": Rule("flag", "cache_text_encoder_outputs_to_disk", family=_FLUX),
    "flux_fused_backward_pass": Rule("flag", "fused_backward_pass", family=_FLUX),
    # --- whole numbers
    **_rules(
        "save_every_n_epochs save_every_n_steps save_last_n_steps save_last_n_steps_state save_last_n_epochs"
        " save_last_n_epochs_state sample_every_n_steps sample_every_n_epochs keep_tokens vae_batch_size"
        " caption_dropout_every_n_epochs min_timestep max_timestep lr_scheduler_num_cycles clip_skip"
        " max_data_loader_n_workers",
        Rule("whole", zero=False),
    ),
    **_rules(
        "train_batch_size gradient_accumulation_steps bucket_reso_steps min_bucket_reso max_bucket_reso",
        Rule("whole"),
    ),
    "fused_optimizer_groups": Rule("whole", zero=False, family=_SDXL),
    "sd3_text_encoder_batch_size": Rule("whole", "text_encoder_batch_size", family=_SD3),
    **_rules("single_blocks_to_swap double_blocks_to_swap", Rule("whole", zero=False, family=_FLUX)),
    # --- numbers
    **_rules(
        "caption_dropout_rate min_snr_gamma ip_noise_gamma v_pred_like_loss scale_weight_norms network_dropout",
        Rule("number", zero=False),
    ),
    **_rules("max_grad_norm prior_loss_weight huber_c huber_scale lr_scheduler_power", Rule("number")),
    **_rules("discrete_flow_shift guidance_scale", Rule("number", family=_FLUX)),
    **_rules("logit_mean logit_std mode_scale", Rule("number", family=_SD3)),
    "clip_g_dropout_rate": Rule("number", zero=False, family=_SD3),
    "sd3_clip_l_dropout_rate": Rule("number", "clip_l_dropout_rate", zero=False, family=_SD3),
    "sd3_t5_dropout_rate": Rule("number", "t5_dropout_rate", zero=False, family=_SD3),
    "pos_emb_random_crop_rate": Rule("number", zero=False, family=_SD3),
    # --- texts
    **_rules(
        "pretrained_model_name_or_path output_name output_dir logging_dir log_with log_tracker_name log_tracker_config"
        " wandb_run_name training_comment save_precision metadata_title metadata_author metadata_description metadata_license"
        " metadata_tags resume dataset_config vae huggingface_repo_id huggingface_repo_type huggingface_repo_visibility"
        " huggingface_path_in_repo loss_type huber_schedule sample_sampler lr_scheduler lr_scheduler_type token_string"
        " weights",
        Rule("text"),
    ),
    "optimizer": Rule("text", "optimizer_type"),
    "max_resolution": Rule("text", "resolution"),
    "ae": Rule("text", family=_FLUX),
    **_rules("model_type model_prediction_type timestep_sampling", Rule("text", family=_FLUX)),
    **_rules("clip_g weighting_scheme t5xxl_device t5xxl_dtype", Rule("text", family=_SD3)),
    "block_lr": Rule("text", family=_SDXL),
}

_LEAST_STEP = 8  # pixels that one of the latents stands for
_NAMES = {"flux": "Flux.1", "sd3": "Stable Diffusion 3", "sdxl": "SDXL"}


def pass_on(form: Form, key: str) -> None:
    """Make the argument of a key of RULES."""
    rule = RULES[key]
    value = {
        "flag": form.flag,
        "whole": lambda k: form.number(k, whole=True),
        "number": form.number,
        "text": form.text,
    }[rule.kind](key)
    if value is None:
        return
    if key == "bucket_reso_steps" and value < _LEAST_STEP:
        form.refuse(key, f"Sides are multiples of {_LEAST_STEP} at least; what the family needs is used.")
    elif rule.family and form.family != rule.family:
        form.idle(key, f"It counts only for {_NAMES[rule.family]}.")
    elif value == 0 and rule.kind in ("whole", "number") and not rule.zero:
        form.idle(key, "0 is off.")
    else:
        form.send(rule.argument or key, value, key)
