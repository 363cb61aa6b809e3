"""The `ss_*` keys of a LoRA file's metadata give a configuration back (kohya.md §2.10): as much of it as files say.

All values are texts, as Python writes them: "None", "True", "0.0001", a dictionary as JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from limner import parsing
from limner.config.kohya import own_flow
from limner.config.kohya.arguments import SCRIPT, to_values
from limner.config.kohya.reader import Reader
from limner.config.kohya.report import Imported, Report
from limner.errors import printable

_SAME = {
    "learning_rate", "text_encoder_lr", "unet_lr", "output_name", "gradient_checkpointing", "gradient_accumulation_steps",
    "max_train_steps", "lr_warmup_steps", "lr_scheduler", "network_module", "network_dim", "network_alpha",
    "network_dropout", "mixed_precision", "full_fp16", "v2", "clip_skip", "max_token_length", "cache_latents", "seed",
    "lowram", "noise_offset", "multires_noise_iterations", "multires_noise_discount", "adaptive_noise_scale",
    "noise_offset_random_strength", "zero_terminal_snr", "training_comment", "max_grad_norm", "caption_dropout_rate",
    "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "face_crop_aug_range", "prior_loss_weight",
    "min_snr_gamma", "scale_weight_norms", "ip_noise_gamma", "ip_noise_gamma_random_strength", "loss_type",
    "huber_schedule", "huber_scale", "huber_c", "fp8_base", "fp8_base_unet", "validation_seed", "validation_split",
    "max_validation_steps", "validate_every_n_epochs", "validate_every_n_steps", "resize_interpolation", "resolution",
    "color_aug", "flip_aug", "random_crop", "shuffle_caption", "enable_bucket", "bucket_no_upscale", "min_bucket_reso",
    "max_bucket_reso", "keep_tokens", "apply_t5_attn_mask", "apply_lg_attn_mask", "weighting_scheme", "logit_mean",
    "logit_std", "mode_scale", "guidance_scale", "timestep_sampling", "sigmoid_scale", "model_prediction_type",
    "discrete_flow_shift", "model_type", "bucket_reso_steps", "caption_separator", "weighted_captions",
}  # fmt: skip
_OTHERS = {
    "debiased_estimation": "debiased_estimation_loss",
    "batch_size_per_device": "train_batch_size",
    "sd_model_name": "pretrained_model_name_or_path",
    "vae_name": "vae",
}
_FACTS = {
    "session_id", "training_started_at", "training_finished_at", "num_train_images", "num_validation_images", "num_reg_images",
    "num_batches_per_epoch", "num_epochs", "sd_scripts_commit_hash", "total_batch_size", "sd_model_hash", "new_sd_model_hash",
    "vae_hash", "new_vae_hash", "steps", "epoch", "bucket_info", "tag_frequency",
}  # fmt: skip
_VERSIONS = {"sd_v1": "sd1", "sd_v2": "sd2", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux"}
_SCRIPTS = {
    "sd1": "train_network.py", "sd2": "train_network.py", "sdxl": "sdxl_train_network.py", "sd3": "sd3_train_network.py",
    "flux": "flux_train_network.py",
}  # fmt: skip
_MODELSPEC = {f"modelspec.{name}": f"output.{name}" for name in ("title", "author", "description", "license")}
_MODELSPEC |= {"modelspec.trigger_phrase": "data.trigger"}
_CLASSES = {
    "adamw8bit": "AdamW8bit", "pagedadamw8bit": "PagedAdamW8bit", "lion8bit": "Lion8bit", "adamw": "AdamW", "lion": "Lion",
    "adafactor": "Adafactor", "prodigy": "Prodigy", "dadaptadam": "DAdaptAdam", "dadaptlion": "DAdaptLion",
    "schedulefreeadamw": "AdamWScheduleFree", "adamwschedulefree": "AdamWScheduleFree", "sgd": "SGDNesterov",
    "pagedadamw": "PagedAdamW", "pagedadamw32bit": "PagedAdamW32bit", "came": "pytorch_optimizer.CAME",
}  # fmt: skip
_PIECE = re.compile(r"\b([A-Za-z_]\w*+)=((?:\([^()]*\)|\[[^\[\]]*\]|'[^']*'|\"[^\"]*\"|[^,()])*)")
_MAX_CHARACTERS = 20_000


def of_lora(metadata: Mapping[str, str]) -> Imported:
    """A configuration from a LoRA file's metadata, and what became of each of its keys."""
    report, given, said = Report(), dict[str, Any](), dict[str, str]()
    for key, text in metadata.items():
        name = key.removeprefix("ss_")
        if not isinstance(text, str) or (len(text) > _MAX_CHARACTERS and name not in _FACTS):
            report.say(key, None, "unsupported", why="It is too long to be an option.")
        elif not key.startswith("ss_"):
            _other(report, key, text)
        elif name in _FACTS:
            report.say(key, printable(text, 60), "idle", why="It tells how the training went.")
        elif text in ("None", ""):
            report.say(key, text, "idle", why="It was not given.")
        elif name in _SAME or name in _OTHERS:
            argument = _OTHERS.get(name, name)
            given[argument], said[argument] = _plain(argument, text), key
        else:
            _special(report, key, name, text, given, said)
    family = next((f for v, f in _VERSIONS.items() if metadata.get("ss_base_model_version", "").startswith(v)), "")
    if family:
        given[SCRIPT] = _SCRIPTS[family]
        if family == "sd2":
            given["v2"] = "True"
        report.say("ss_base_model_version", metadata["ss_base_model_version"], "converted", "model.family")
    if own_flow.is_own(metadata):
        given = {name: value for name, value in given.items() if said.get(name) not in own_flow.KEYS}
    values = _values(given, said, report, metadata)
    if own_flow.is_own(metadata):
        values.setdefault("objective", {}).update(own_flow.read(metadata, report))
    return Imported(values, report)


def _values(
    given: dict[str, Any], said: dict[str, str], report: Report, metadata: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    inner = Report()
    # what a file does not name was not asked: a text encoder without a rate was not trained
    if "network_module" in given:
        has_text, has_denoiser = "text_encoder_lr" in given, "unet_lr" in given or "text_encoder_lr" not in given
        given |= {"network_train_unet_only": not has_text, "network_train_text_encoder_only": not has_denoiser}
    values, check = to_values(given, inner), Reader({}, inner, None, False)
    for name, line in inner.lines.items():
        base, dot, part = name.partition(".")
        key = said.get(base, base)
        if key in metadata:
            report.say(key + dot + part, line.value, line.outcome, *line.becomes, why=line.why)
    for key, option in _MODELSPEC.items():
        text = metadata.get(key)
        if not text:
            continue
        if fault := check.fault(option, text):
            report.say(key, printable(text, 60), "unsupported", why=f"It {fault}")
            continue
        section, _, name = option.partition(".")
        values.setdefault(section, {})[name] = text
        report.say(key, printable(text, 60), "taken", option)
    return values


def _other(report: Report, key: str, text: str) -> None:
    if key == "modelspec.tags":
        report.say(key, printable(text, 60), "idle", why="Set output.tags to have them again.")
    elif key.startswith(("modelspec.", "sshs_", "limner")):
        report.say(key, printable(text, 60), "idle", why="It is written of itself.")
    else:
        report.say(key, printable(text, 60), "unknown", why="It is no key of a LoRA file.")


def _plain(name: str, text: str) -> Any:
    if name in ("resolution", "text_encoder_lr"):  # a tuple and a list, as Python writes them
        return [number for number in text.strip("()[]").replace(" ", "").split(",") if number]
    return text


def _special(report: Report, key: str, name: str, text: str, given: dict[str, Any], said: dict[str, str]) -> None:
    """Keys that are written otherwise than their arguments."""
    if name == "base_model_version":
        report.say(key, text, "unsupported", why="Limner does not train this family.")
    elif name == "network_args":
        found = _json(text)
        if not isinstance(found, dict):
            report.say(key, printable(text, 60), "unsupported", why="It is no table.")
            return
        given["network_args"] = [f"{k}={v}" for k, v in found.items()]
        said["network_args"] = key
    elif name == "optimizer":
        path, _, inside = text.partition("(")
        short = path.rpartition(".")[2]
        given["optimizer_type"] = _CLASSES.get(short.lower().replace("_", ""), path)
        given["optimizer_args"] = [f"{k}={v.strip()}" for k, v in _PIECE.findall(inside.removesuffix(")"))]
        said |= {"optimizer_type": key, "optimizer_args": key + "_args"}
    elif name in ("dataset_dirs", "reg_dataset_dirs"):
        _folders(report, key, name, text)
    elif name == "datasets":
        report.say(key, printable(text, 60), "unsupported", why="Give a dataset file anew: files do not hold folders' paths.")
    else:
        report.say(key, printable(text, 60), "unknown", why="sd-scripts 0.10.1 writes no such key.")


def _folders(report: Report, key: str, name: str, text: str) -> None:
    found = _json(text)
    option = "data.path" if name == "dataset_dirs" else "data.class_path"
    if not found:
        report.say(key, text, "idle", why="There are none.")
        return
    folders = ", ".join(map(str, found)) if isinstance(found, dict) else "?"
    why = f"Files hold folders' names, not their places; set {option}. They were: {printable(folders, 200)}"
    report.say(key, printable(text, 60), "unsupported", why=why)


def _json(text: str) -> Any:
    try:
        found = parsing.json_value(text)
    except ValueError:
        return None
    return None if isinstance(found, float) and not math.isfinite(found) else found
