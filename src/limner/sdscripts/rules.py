"""Combinations of arguments that sd-scripts refuses by an `assert` after minutes of loading, known before the start.

They are looked for in what is written for it, arguments and dataset file alike, not in Limner's options: what the one
trainer refuses the other may well do. Where each stands is in the reference of sd-scripts 0.10.1 by file and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

FLOW = ("sd3", "flux")
_VARY = ("shuffle_caption", "caption_dropout_rate", "caption_tag_dropout_rate", "token_warmup_step")
_NO_WARMUP = ("constant", "adafactor")
_BLOCKS_OF_SDXL = 23

Broken = tuple[str, str, str]
"""(argument or key of the dataset file, what is wrong, what to do)."""


def broken_rules(script: str, family: str, given: Mapping[str, Any], datasets: Sequence[Mapping[str, Any]]) -> Iterator[Broken]:
    """The rules that a set of arguments breaks; `datasets` are the tables of the dataset file."""
    subsets = [s for d in datasets for s in d.get("subsets", ())]
    yield from _caches(script, family, given, subsets)
    yield from _precision(given)
    yield from _fused(given)
    yield from _noise(family, given)
    yield from _schedule(given)
    yield from _buckets(script, family, datasets)
    if given.get("blocks_to_swap") and given.get("cpu_offload_checkpointing"):
        yield "blocks_to_swap", "does not go with cpu_offload_checkpointing.", "Use one of them."
    if (rates := given.get("block_lr")) and len(str(rates).split(",")) != _BLOCKS_OF_SDXL:
        yield "block_lr", f"must be {_BLOCKS_OF_SDXL} numbers.", "Give one for each block."


def _caches(script: str, family: str, given: Mapping[str, Any], subsets: Iterable[Mapping[str, Any]]) -> Iterator[Broken]:
    layers = [given, *subsets]
    if given.get("cache_latents") or given.get("cache_latents_to_disk"):
        for name in ("color_aug", "random_crop"):
            if any(layer.get(name) for layer in layers):
                yield name, "does not go with cached latents in sd-scripts.", "Switch it or memory.cache_latents off."
    if not (given.get("cache_text_encoder_outputs") or given.get("cache_text_encoder_outputs_to_disk")):
        return
    for name in _VARY:
        if any(layer.get(name) for layer in layers):
            yield name, "does not go with cached captions in sd-scripts.", "Switch it or memory.cache_text off."
    trains_text = not given.get("network_train_unet_only") if "network" in script else given.get("train_text_encoder")
    if family == "sdxl" and trains_text:
        yield "cache_text_encoder_outputs", "does not go with a trained text encoder.", "Leave it untrained, or cache nothing."
    if family == "sdxl" and given.get("weighted_captions"):
        yield "weighted_captions", "does not go with cached captions.", "Switch it or memory.cache_text off."
    if given.get("train_t5xxl"):
        yield "train_t5xxl", "does not go with cached captions.", "Switch it or memory.cache_text off."


def _precision(given: Mapping[str, Any]) -> Iterator[Broken]:
    mixed = given.get("mixed_precision", "no")
    for name, wanted in (("full_fp16", "fp16"), ("full_bf16", "bf16")):
        if given.get(name) and mixed != wanted:
            yield name, f"needs {wanted} arithmetic, not {mixed}.", f'Set train.precision = "{wanted}".'
    if given.get("fp8_base") and mixed == "no":
        yield "fp8_base", "needs fp16 or bf16 arithmetic.", 'Set train.precision = "bf16".'


def _fused(given: Mapping[str, Any]) -> Iterator[Broken]:
    kind, groups = str(given.get("optimizer_type", "")).lower(), given.get("fused_optimizer_groups")
    blockwise = given.get("blockwise_fused_optimizers")
    if given.get("fused_backward_pass"):
        if kind != "adafactor":
            yield "fused_backward_pass", "goes with Adafactor only in sd-scripts.", "Choose Adafactor."
        if given.get("gradient_accumulation_steps", 1) != 1:
            yield "gradient_accumulation_steps", "must be 1 with fused_backward_pass.", "Set it to 1."
        if groups or blockwise:
            yield "fused_backward_pass", "does not go with the other fused ways.", "Use one of them."
    if blockwise and "schedulefree" in kind:
        yield "blockwise_fused_optimizers", "does not go with a schedule-free optimiser.", "Use one of them."


def _noise(family: str, given: Mapping[str, Any]) -> Iterator[Broken]:
    if given.get("adaptive_noise_scale") and not given.get("noise_offset"):
        yield "adaptive_noise_scale", "needs noise_offset.", "Give both."
    if given.get("scale_v_pred_loss_like_noise_pred") and not given.get("v_parameterization"):
        yield "scale_v_pred_loss_like_noise_pred", "needs a model that predicts v.", "Leave it out."
    if given.get("v_pred_like_loss") and given.get("v_parameterization"):
        yield "v_pred_like_loss", "is for models that predict the noise.", "Leave it out."
    if family in FLOW and given.get("loss_type") in ("huber", "smooth_l1") and given.get("huber_schedule", "snr") == "snr":
        said = "huber_schedule = snr has no meaning for a model of flow matching."
        yield "loss_type", said, "Use another loss, or another schedule of its threshold."


def _schedule(given: Mapping[str, Any]) -> Iterator[Broken]:
    warmup, schedule = given.get("lr_warmup_steps", 0), given.get("lr_scheduler", "constant")
    if warmup and (schedule in _NO_WARMUP or given.get("lr_scheduler_type")):
        said = f"{warmup} with the schedule {given.get('lr_scheduler_type') or schedule!r}, which takes none."
        yield "lr_warmup_steps", said, "Set it to 0, or choose constant_with_warmup."
    told = [str(word).replace(" ", "").lower() for word in given.get("optimizer_args", ())]
    if warmup and str(given.get("optimizer_type", "")).lower() == "adafactor" and "relative_step=false" not in told:
        said = "Adafactor finds the rate itself here (relative_step), and then takes no warm-up."
        yield "lr_warmup_steps", said, "Set it to 0."


def bucket_step_px(script: str, family: str) -> int:
    """What the sides of buckets have to be multiples of."""
    is_whole = "network" not in script
    return {"sd3": 8 if is_whole else 32, "flux": 16 if is_whole else 32, "sdxl": 32}.get(family, 64)


def _buckets(script: str, family: str, datasets: Sequence[Mapping[str, Any]]) -> Iterator[Broken]:
    step = bucket_step_px(script, family)
    for dataset in datasets:
        if not dataset.get("enable_bucket"):
            continue
        size, given = dataset.get("resolution", 512), dataset.get("bucket_reso_steps", 64)
        sides = [size] if isinstance(size, int) else list(size)
        if given % step:
            yield "bucket_reso_steps", f"{given} is no multiple of {step}.", f"Set it to {step}."
        if dataset.get("bucket_no_upscale"):
            continue
        if min(sides) < dataset.get("min_bucket_reso", 256):
            yield "min_bucket_reso", f"is more than the resolution, {min(sides)}.", "Set it lower."
        if max(sides) > dataset.get("max_bucket_reso", 1024):
            yield "max_bucket_reso", f"is less than the resolution, {max(sides)}.", "Set it higher."
