"""What has no counterpart: arguments of sd-scripts that Limner does without, and options of Limner that sd-scripts does."""

from __future__ import annotations

from limner.config import fields
from limner.config.kohya.reader import Reader
from limner.config.kohya.writer import Writer
from limner.errors import Severity

_LOADING = "How data is loaded is found out by Limner."
_DEEPSPEED = "DeepSpeed is not used; see memory.swap_blocks, memory.quantize and memory.checkpointing."
_ATTENTION = "PyTorch's own attention is used, the fastest that suits."
_HUB = "Nothing is sent to the Hugging Face hub by a training; `limner` has a tool for it."
_FAMILY = "It is for a family that Limner does not train."
_CONSOLE = "The log is the run's own."
_STATE = "A run is resumed from its own folder, at the same step."
_COMPILE = "See speed.compile."

IDLE = {
    "max_data_loader_n_workers": _LOADING, "persistent_data_loader_workers": _LOADING, "vae_batch_size": _LOADING,
    "text_encoder_batch_size": _LOADING, "skip_cache_check": _LOADING, "cache_info": _LOADING,
    "skip_latents_validity_check": _LOADING, "lowram": _LOADING, "highvram": _LOADING,
    "disable_mmap_load_safetensors": _LOADING, "mem_eff_save": _LOADING,
    "attn_mode": _ATTENTION, "split_attn": _ATTENTION, "use_flash_attn": _ATTENTION, "use_sage_attn": _ATTENTION,
    "console_log_file": _CONSOLE, "console_log_level": _CONSOLE, "console_log_simple": _CONSOLE, "log_config": _CONSOLE,
    "log_prefix": _CONSOLE,
    "ddp_gradient_as_bucket_view": "Several processes are set up by Limner.",
    "ddp_static_graph": "Several processes are set up by Limner.",
    "ddp_timeout": "Several processes are set up by Limner.",
    "config_file": "What it says has been read, or is to be read on its own.",
    "output_config": "The run's configuration is always written.",
    "debug_dataset": "`limner data` shows what is trained on.",
    "tokenizer_cache_dir": "Tokenizers lie with the model, or come with Limner.",
    "metadata_merged_from": "It is written of itself, from model.merge.",
    "metadata_trigger_phrase": "It is written of itself, from data.trigger.",
    "validation_seed": "The seed of the training draws what is held out.",
    "zero_stage": _DEEPSPEED, "zero3_init_flag": _DEEPSPEED, "zero3_save_16bit_model": _DEEPSPEED,
    "offload_optimizer_device": _DEEPSPEED, "offload_optimizer_nvme_path": _DEEPSPEED, "offload_param_device": _DEEPSPEED,
    "offload_param_nvme_path": _DEEPSPEED, "fp16_master_weights_and_gradients": _DEEPSPEED,
    "async_upload": _HUB, "huggingface_path_in_repo": _HUB, "huggingface_repo_type": _HUB,
    "huggingface_repo_visibility": _HUB,
    "huggingface_token": "Keys are not kept in configurations.",
    "wandb_api_key": "Keys are not kept in configurations: set WANDB_API_KEY.",
    "initial_epoch": _STATE, "initial_step": _STATE, "skip_until_initial_step": _STATE,
    "t5xxl_device": _LOADING, "t5xxl_dtype": _LOADING, "text_encoder_cpu": _LOADING,
    "epoch": "The trainer has no such argument: max_train_steps or max_train_epochs decide.",
    "noise_offset_type": "It is the page's own: noise_offset or multires_noise_iterations say which.",
    "network_train_norm": "It is the page's own.",
}  # fmt: skip
"""Arguments that change nothing in what is learnt, and why they are not needed."""

UNSUPPORTED = {
    "dataset_class": "No code is loaded by a configuration.",
    "face_crop_aug_range": "Limner does not look for faces: see data.random_crop.",
    "resize_interpolation": "Pictures are always resized by Lanczos' filter.",
    "deepspeed": _DEEPSPEED,
    "huggingface_repo_id": _HUB, "resume_from_huggingface": _HUB, "save_state_to_huggingface": _HUB,
    "resume": "accelerate's states hold pickles and forget the step. Go on from the weights: adapter.start or model.base.",
    "save_n_epoch_ratio": "Set output.save_every_epochs.",
    "log_tracker_config": "Trackers are told logging.project and logging.run_name.",
    "metadata_is_negative_embedding": "It is not written.", "metadata_preprocessor": "It is not written.",
    "metadata_thumbnail": "It is not written.", "metadata_usage_hint": "Put it into output.description.",
    "training_comment": "Put it into output.description.",
    "no_metadata": "Files say how they were made.",
    "max_validation_steps": "All pictures that are held out are measured.",
    "cpu_offload_checkpointing": "See memory.swap_blocks and memory.checkpoint_every.",
    "unsloth_offload_checkpointing": "See memory.swap_blocks and memory.checkpoint_every.",
    "split_mode": "See memory.swap_blocks.",
    "double_blocks_to_swap": "See memory.swap_blocks.", "single_blocks_to_swap": "See memory.swap_blocks.",
    "fused_optimizer_groups": "See optimizer.in_backward.", "blockwise_fused_optimizers": "See optimizer.in_backward.",
    "apply_t5_attn_mask": "T5 is read without a mask, as the models were taught.",
    "apply_lg_attn_mask": "CLIP is read without a mask, as the models were taught.",
    "clip_l_dropout_rate": "Captions are dropped as a whole: data.caption_dropout.",
    "clip_g_dropout_rate": "Captions are dropped as a whole: data.caption_dropout.",
    "t5_dropout_rate": "Captions are dropped as a whole: data.caption_dropout.",
    "enable_scaled_pos_embed": "Positions are the model's own.",
    "pos_emb_random_crop_rate": "Positions are the model's own.",
    "save_clip": "Which parts a file has follows from the base model.",
    "save_t5xxl": "Which parts a file has follows from the base model.",
    "num_last_block_to_freeze": "Write it as adapter.rules.",
    "use_t5xxl_cache_only": "T5 is used or is not there.",
    "no_token_padding": "Captions are always filled up to 75 tokens.",
    "use_object_template": "Captions are those of the pictures; embedding.token stands in for the trigger.",
    "use_style_template": "Captions are those of the pictures; embedding.token stands in for the trigger.",
    "weights": "An embedding begins as embedding.initial.",
    "controlnet_model_name_or_path": "ControlNets are not trained.", "control_net_lr": "ControlNets are not trained.",
    "cond_emb_dim": "ControlNets are not trained.",
    "train_inpainting": "Inpainting models are not trained.",
    "compile": _COMPILE,
    **dict.fromkeys(
        ("gemma2", "gemma2_max_token_length", "sample_batch_size", "system_prompt", "cross_attn_lr", "llm_adapter_lr",
         "llm_adapter_path", "mlp_lr", "mod_lr", "qwen3", "qwen3_max_token_length", "self_attn_lr", "t5_max_token_length",
         "t5_tokenizer_path", "vae_disable_cache", "vae_chunk_size", "byt5", "fp8_scaled", "fp8_vl", "text_encoder"), _FAMILY),
}  # fmt: skip
"""Arguments that would change something, and what to do instead."""

LOST: dict[str, tuple[Severity, str]] = {
    "model.t5_tokenizer": ("warning", "sd-scripts fetches T5's tokenizer itself."),
    "model.revision": ("error", "sd-scripts takes the newest revision of a model of the hub."),
    "model.config": ("error", "sd-scripts knows the usual shapes of models alone."),
    "data.class_words": ("error", "sd-scripts preserves in another way."),
    "data.class_prompt": ("error", "sd-scripts takes class pictures' captions from their folder's name, 1_class."),
    "data.class_count": ("warning", "sd-scripts paints no class pictures: have them painted before."),
    "data.more_resolutions": ("error", "sd-scripts has one resolution for a dataset: use a dataset file."),
    "data.caption_column": ("error", "sd-scripts reads no tables and no archives: unpack them into folders before."),
    "data.variants": ("warning", "sd-scripts encodes each picture anew."),
    "data.mask_floor": ("error", "sd-scripts learns nothing of what is masked."),
    "data.skip_broken": ("warning", "sd-scripts stops at a picture that does not open."),
    "train.on_nan": ("warning", "sd-scripts goes on, and learns nothing any more."),
    "train.ema": ("error", "sd-scripts keeps no moving average."),
    "train.ema_device": ("warning", "sd-scripts keeps no moving average."),
    "objective.preserve": ("error", "sd-scripts preserves by custom_attributes of a dataset file alone."),
    "memory.checkpoint_every": ("warning", "sd-scripts computes every layer again."),
    "memory.fit": ("warning", "sd-scripts keeps everything as it is told."),
    "memory.micro_batch": ("warning", "sd-scripts computes whole batches."),
    "memory.vae_tiling": ("warning", "sd-scripts encodes whole pictures."),
    "memory.verify": ("warning", "sd-scripts checks nothing beforehand."),
    "memory.cache_path": ("warning", "sd-scripts keeps its caches beside the pictures."),
    "validation.path": ("warning", "sd-scripts holds out a share alone."),
    "speed.prepack": ("note", "sd-scripts lays weights out anew in each step."),
    "speed.cuda_graph": ("warning", "sd-scripts starts each kernel by itself."),
    "speed.channels_last": ("warning", "sd-scripts lays pictures out in one way alone."),
    "output.lora_names": ("error", "sd-scripts writes its own names alone."),
    "adapter.convolutions": ("error", "sd-scripts adapts no convolutions so."),
}
"""Options that sd-scripts does without, with how much it matters."""


def read(r: Reader) -> None:
    """Say what is left."""
    for name in list(r.given):
        if name in r.done or "." in name or name == "_script":
            continue
        value = r.given[name]
        is_off = value in (None, False, "", 0, "0", "0.0", "False", "false", "None") or value == []
        if name in IDLE:
            r.idle(name, IDLE[name])
        elif name in UNSUPPORTED and is_off:
            r.idle(name, "It is off.")
        elif name in UNSUPPORTED:
            r.unsupported(name, UNSUPPORTED[name])
        elif r.knows(name):
            r.idle(name, "It is not given." if is_off else "It does nothing with the other settings.")
        elif r.script is not None and Reader({}, r.report, None, False).knows(name):
            r.idle(name, f"{r.script.name} does not know it.")
        else:
            r.account(name, "unknown", why="sd-scripts 0.10.1 has no such argument.")


def write(w: Writer) -> None:
    """Say which options nothing comes of."""
    for option, value in fields.values(w.config):
        if option.path in LOST and value != option.default and fields.applies(option, w.config):
            severity, said = LOST[option.path]
            w.lose(option.path, said, severity=severity)
    token = w.config.embedding.token
    if token is not None and w.config.adapter.kind != "embedding":
        w.lose("embedding.token", "sd-scripts learns a word alone, not beside something else.")
